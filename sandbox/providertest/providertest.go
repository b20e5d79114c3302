// Package providertest is for tests of sandbox providers and of what is built
// on them: Run holds a provider against every promise of package sandbox's
// contracts, Fake is a provider without walls that runs host processes in a
// temporary directory, and Stub answers what a test tells it to.
package providertest
