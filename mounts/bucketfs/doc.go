//go:build linux

// Package bucketfs shows a bucket, or the part of it below a prefix, as a file
// system.
//
// What it promises:
//
//   - close, fsync and rename return when the bucket has it, or with an error.
//     Under a name stand only states as of some close or fsync; nothing that
//     was acknowledged is lost, and no half object is ever seen.
//   - A write that somebody else's write came before fails with ESTALE.
//   - What others change is seen within Options.AttrTimeout.
//   - While the service is silent, calls end with EIO within ten seconds; when
//     it is back, they work again.
//
// How a directory is kept: "dir/" is its marker, an empty object of its own, and
// a directory is also there when any key begins with "dir/". Modes, times that
// were set and symbolic links are notes in objects' metadata (see note). Lists
// of S3 do not tell metadata, and a request for each name would cost more than
// all the rest; so the first note in a directory makes an object named hintName
// there, and without one no object of the directory is asked. docs/buckets.md
// says what of POSIX holds.
package bucketfs
