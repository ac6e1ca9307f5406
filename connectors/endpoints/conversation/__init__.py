"""What chat and responses share: messages, tool calls, structured output, output columns."""
