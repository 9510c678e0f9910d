"""A folder for a device without network: an artifact, the runtime's wheels, and scripts that install and run it."""
