// Package api is a thin client of the Daytona API: its control plane and, in
// each sandbox, its toolbox.
package api
