package allinone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tricycle-relay/tricycle/lib/private"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	// retainEvery is the interval of applying the retention: kfake does so once an
	// hour, and not at all after a restart.
	retainEvery = 10 * time.Second
	// segmentBytes is the size of a file of a partition's log. Only whole files
	// are deleted: the log exceeds the retention by up to one.
	segmentBytes = 4 << 20
)

// openBroker starts a broker on a loopback port, with its log in the directory.
// A record is in a file before it is acknowledged, but not synced: it survives
// the end of the process, not that of the machine. Syncing each record would cost
// more than everything else that happens to it.
//
// The topics are created here with another retention than that of the services:
// by size only. A retention by age can empty a log, and after a restart kfake
// counts the offsets of an empty log from 0 again, below the committed ones.
func openBroker(directory string, c topic.Config, console io.Writer) (*kfake.Cluster, error) {
	if err := errors.Join(private.Directory(directory), os.Chmod(directory, 0o700)); err != nil {
		return nil, err
	}
	b, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(directory), kfake.WithLogger(kfake.BasicLogger(console, kfake.LogLevelWarn)))
	if err != nil {
		return nil, fmt.Errorf("start on %s: %w", directory, err)
	}
	for _, name := range []string{c.Topic, c.DeadLetterTopic} {
		if b.TopicInfo(name) != nil {
			continue
		}
		settings := topic.Limits()
		settings["retention.ms"] = "-1"
		settings["retention.bytes"] = strconv.Itoa(c.RetentionMegabytes << 20)
		settings["segment.bytes"] = strconv.Itoa(segmentBytes)
		if err := b.CreateTopic(name, int32(c.Partitions), settings); err != nil {
			b.Close()
			return nil, fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	return b, nil
}

// serveBroker applies the retention until ctx is cancelled, then closes the
// broker.
func serveBroker(ctx context.Context, b *kfake.Cluster) {
	defer b.Close()
	for ok := true; ok; ok = retry.Pause(ctx, retainEvery) {
		b.ApplyRetention()
	}
}
