// Command ms3 runs the third service of the cycle: Kafka in, HTTP out.
package main

import (
	"context"
	"io"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

func command() program.Program[ms3.Config] {
	return program.Program[ms3.Config]{
		Name:    "ms3",
		Purpose: "takes messages from Kafka and posts them to MS1",
		Config:  ms3.Defaults(),
		Serves: func(c ms3.Config) program.Served {
			// MS1 stops first, and drains through MS3: its absence is no reason to
			// restart this.
			return program.Served{Address: c.Listen, Ready: "/readyz?exclude=ms1", TLS: c.TLS.CertificateFile != "", Profiling: c.Profiling}
		},
		Run: func(ctx context.Context, c ms3.Config, console io.Writer) error { return ms3.Run(ctx, c, console, nil) },
	}
}
