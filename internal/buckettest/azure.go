//go:build unix

package buckettest

import (
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

// SAS is a shared access signature of an Azure server's container, with rights
// that each letter names (r, a, c, w, d, l), from two hours ago until then.
func (s *Server) SAS(t testing.TB, rights string, until time.Time) string {
	t.Helper()
	cred, err := container.NewSharedKeyCredential(s.Job.Service.Account, s.Job.Service.AccountKey)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ContainerName: s.Job.Bucket, Permissions: rights, StartTime: time.Now().Add(-2 * time.Hour), ExpiryTime: until,
	}.SignWithSharedKey(cred)
	if err != nil {
		t.Fatal(err)
	}
	return q.Encode()
}
