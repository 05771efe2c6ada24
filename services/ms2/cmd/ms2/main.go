// Command ms2 runs the second service of the cycle: WebSocket in, Kafka out.
package main

import (
	"context"
	"io"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms2"
)

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

func command() program.Program[ms2.Config] {
	return program.Program[ms2.Config]{
		Name:    "ms2",
		Purpose: "takes messages from MS1 over a WebSocket and hands them to MS3 through Kafka",
		Config:  ms2.Defaults(),
		Serves: func(c ms2.Config) program.Served {
			return program.Served{Address: c.Listen, Ready: "/readyz", TLS: c.TLS.CertificateFile != "", Profiling: c.Profiling}
		},
		Run: func(ctx context.Context, c ms2.Config, console io.Writer) error { return ms2.Run(ctx, c, console, nil) },
	}
}
