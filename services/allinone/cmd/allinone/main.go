// Command allinone runs MS1, MS2 and MS3 in one process, with an embedded broker
// and database unless the configuration names real ones.
package main

import (
	"context"
	"flag"
	"os"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/allinone"
)

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

func command() program.Program[allinone.Config] {
	return program.Program[allinone.Config]{
		Name:    "allinone",
		Purpose: "runs MS1, MS2 and MS3 in one process, with what they need",
		Config:  allinone.Defaults(),
		Flags: func(flags *flag.FlagSet, c *allinone.Config) {
			flags.StringVar(&c.Listen, "listen", c.Listen, "listen for MS1's requests on `ADDR`, host:port")
			flags.StringVar(&c.Data, "data", c.Data, "keep database, broker and logs in the directory `DIR`")
			flags.BoolVar(&c.Once, "once", c.Once, "run one session at once and exit: 0, or 1 if a message of it was lost")
			flags.BoolVar(&c.Open, "open", c.Open, "open MS1's page in a browser; not with -once")
			flags.IntVar(&c.Interaction.IntervalSeconds, "interval", c.Interaction.IntervalSeconds, "generate messages for `SECONDS` in a session")
			flags.IntVar(&c.Interaction.InFlight, "in-flight", c.Interaction.InFlight, "keep `N` messages in flight")
		},
		Serves: func(c allinone.Config) program.Served {
			return program.Served{Address: c.Listen, Ready: "/readyz", Profiling: c.Profiling}
		},
		Run: allinone.Run,
	}
}
