// Package promises holds tests only: each shows one or more of the numbered
// promises of docs/promises.md through a real MCP client and the built berth
// program, over the embedded local provider.
package promises
