"""Chat in a terminal: `run` without a prompt.

`loop` reads and answers, `session` holds the model and the conversation, `commands` is the table of what begins with a
slash. What a person types comes from `editor` (prompt_toolkit) or `plain`; what they see is `screen`'s.
"""
