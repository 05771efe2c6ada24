// Command ms3 runs the third service of the cycle: Kafka in, HTTP out.
package main

import (
	"context"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

func main() {
	os.Exit(program.Main(context.Background(), ms3.Program(), os.Args[1:], os.Stdout, os.Stderr))
}
