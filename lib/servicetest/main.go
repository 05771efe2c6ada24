// Package servicetest tests services as they run: it starts them, waits until
// they are ready, and reads their metrics, spans and logs.
package servicetest

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

// Main runs the tests of a package and fails if goroutines are left. Tests that
// call t.Parallel run 16 at a time unless -parallel says otherwise: those of
// services wait most of the time. The function ends the process with the exit
// status that it is given; nil stands for os.Exit.
func Main(m *testing.M, end func(status int)) {
	_ = flag.Set("test.parallel", "16") // before the command line is parsed
	var options []goleak.Option
	if end != nil {
		options = append(options, goleak.Cleanup(end))
	}
	goleak.VerifyTestMain(m, options...)
}
