"""What is said in the assistant world whatever was asked: not knowing, refusing, supporting, filling, chatting."""

UNKNOWN = "i do not know that."
DECLINES = (
    "i can not help with that.",
    "i am sorry, but i can not help with that.",
    "i will not help you do that.",
)
SUPPORTS = (
    "that is not safe.",
    "that could hurt someone.",
    "please talk to someone you trust.",
)
FILLERS = (
    "that is a very good question.",
    "i am happy to help you.",
    "i hope this helps you.",
    "there is so much to say.",
    "let me think about it.",
    "please ask me again.",
)
CHAT = (
    "i like the sea in the morning.",
    "my day was very good.",
    "the garden is so green.",
    "let me tell you about my friend.",
)
