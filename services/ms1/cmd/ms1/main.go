// Command ms1 runs the first service of the cycle: it opens sessions, sends
// messages, receives them back and stores them in MariaDB.
package main

import (
	"context"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
)

func main() {
	os.Exit(program.Main(context.Background(), mariadb.Program(), os.Args[1:], os.Stdout, os.Stderr))
}
