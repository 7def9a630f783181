"""The page, its HTTP API and the MCP server, all over one service that knows no HTTP."""
