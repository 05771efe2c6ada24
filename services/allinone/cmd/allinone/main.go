// Command allinone runs MS1, MS2 and MS3 in one process, with an embedded broker
// and database unless the configuration names real ones.
package main

import (
	"context"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/allinone"
)

func main() {
	os.Exit(program.Main(context.Background(), allinone.Program(), os.Args[1:], os.Stdout, os.Stderr))
}
