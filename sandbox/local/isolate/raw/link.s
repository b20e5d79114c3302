// Lets raw.go declare functions without a body.
