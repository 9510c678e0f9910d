"""Pages for people: what a build did, and what a sweep found. One file each: no script, no request."""
