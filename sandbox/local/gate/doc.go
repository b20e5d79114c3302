//go:build linux

// Package gate is the third part of the helper program: it lets a sandbox's
// connections out, as far as the network policy allows. It runs in the host's
// network namespace and gets what leaves a sandbox through sockets made
// inside (package inside). Each connection is judged by the address that the
// gate itself dials, so that no name, however it resolves, leads elsewhere.
//
// The gate reads what hostile programs and the network send: DNS, the names in
// TLS and HTTP. So it is a process of its own, without rights: it opens no
// file, starts no program, and makes no sockets but those of IP (see harden).
// Its monitor starts it at the first connection, anew when it dies, and it
// ends by itself when nothing has used it for a while.
package gate
