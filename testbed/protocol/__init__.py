"""Messages between controller and agents, and between an agent and its program.

    controller (ROUTER)  --to_agents-->    msgpack over ZeroMQ, ipc:// or the control network   agent (DEALER)
                         <--from_agents--
    agent                <--calls--        JSON lines over a Unix socket                        program (any language)

Only says what the messages are, and `frames` turns those over ZeroMQ into bytes and back; sends nothing. What does not
decode is a `ValueError` for the receiver to count and drop, never a crash.
"""
