package sandbox

// TryLock is tryLock, for tests in which another process holds a lock.
var TryLock = tryLock
