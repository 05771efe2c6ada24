package program_test

import (
	"crypto/x509"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestRoots verifies a certificate in a process that finds no CA root in its
// file system, as in the images. Go reads the roots once.
func TestRoots(t *testing.T) {
	const child = "TRICYCLE_TEST_ROOTS_CHILD"
	if os.Getenv(child) == "" {
		again := exec.Command(os.Args[0], "-test.run=^TestRoots$", "-test.v")
		again.Env = append(os.Environ(), child+"=1", "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
		if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestRoots") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	if roots.Equal(x509.NewCertPool()) {
		t.Error("got no CA roots, want those of the module x509roots")
	}
}
