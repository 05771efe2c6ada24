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
	// retainEvery is the time between two applications of the retention: kfake
	// does it once an hour, and not at all after a restart.
	retainEvery = 10 * time.Second
	// segmentBytes is the size of the files of a partition's log. Only whole
	// files are deleted, so the log is up to one larger than the retention.
	segmentBytes = 4 << 20
)

// openBroker starts a broker on a loopback port, with its log in the folder.
// A record is in a file before it is acknowledged, though not yet on the disk:
// it survives the end of this process, however that comes, and not that of the
// machine. Syncing each record would cost more than all the rest of its way.
//
// The topics are made here, not by the services, since their retention differs:
// it goes by size alone. A retention by age empties a log in the end, and kfake
// counts the offsets of an empty one from 0 again after a restart, below those
// that the consumer group has committed.
func openBroker(folder string, c topic.Config, console io.Writer) (*kfake.Cluster, error) {
	if err := errors.Join(private.Directory(folder), os.Chmod(folder, 0o700)); err != nil {
		return nil, err
	}
	b, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(folder), kfake.WithLogger(kfake.BasicLogger(console, kfake.LogLevelWarn)))
	if err != nil {
		return nil, fmt.Errorf("starting on %s: %w", folder, err)
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
			return nil, fmt.Errorf("making topic %s: %w", name, err)
		}
	}
	return b, nil
}

// serveBroker keeps the log of a broker within its retention until ctx is
// cancelled, when it closes the broker.
func serveBroker(ctx context.Context, b *kfake.Cluster) {
	defer b.Close()
	for {
		b.ApplyRetention()
		if !retry.Pause(ctx, retainEvery) {
			return
		}
	}
}
