// Command ms2 runs the second service of the cycle: WebSocket in, Kafka out.
package main

import (
	"context"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms2"
)

func main() {
	os.Exit(program.Main(context.Background(), ms2.Program(), os.Args[1:], os.Stdout, os.Stderr))
}
