package ms3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/retry"
)

const (
	watchInterval = 2 * time.Second
	joinInterval  = 200 * time.Millisecond // while the group is not complete
	stallTime     = 15 * time.Second
)

var errStalled = errors.New("reader has stalled")

// watch detects a reader that has stalled, which can follow the restart of a
// broker (kafka-go issues 387 and 955). It returns errStalled if Kafka answers
// and for the stall time the reader was not a member of its group, the group did
// not have all partitions, or the reader fetched nothing from a partition that has
// more. It does so at once if a partition ends before the offset read last, as that
// of a recreated topic does, or one whose newest records a broker has lost: the
// reader would wait indefinitely, so it goes back to the first record that may be
// unread. It returns the error of ctx when ctx ends.
func (c *consumer) watch(ctx context.Context) error {
	type position struct {
		offset int64
		since  time.Time
	}
	member := time.Now()
	positions, short := map[int]position{}, map[int]int64{}
	for interval := joinInterval; retry.Pause(ctx, interval); {
		group, err := c.inspect(ctx)
		if ctx.Err() != nil {
			break
		}
		interval = joinInterval
		if err == nil {
			interval = min(watchInterval, c.stall/5)
		}
		now := time.Now()
		c.health.Store(&err)
		if group == nil || group.member {
			member = now
		}
		if now.Sub(member) > c.stall {
			return fmt.Errorf("%w: %w", errStalled, err)
		}
		was := positions
		positions = map[int]position{}
		if group == nil {
			continue
		}
		rewound := false
		for number, end := range group.short {
			if _, twice := short[number]; !twice { // many records may be read again
				continue
			}
			if first, err := unread(ctx, c.cluster.Client(), c.config.Kafka.Topic, number, c.offsets.since(number, c.overlap), end); err == nil {
				c.offsets.rewind(number, first)
				rewound = true
			}
		}
		if short = group.short; rewound {
			return fmt.Errorf("%w: %w", errStalled, err)
		}
		for number, offset := range group.behind {
			since := now
			if before, ok := was[number]; ok && before.offset == offset && c.waiting.Load() {
				since = before.since
			}
			positions[number] = position{offset, since}
			if now.Sub(since) > c.stall {
				return fmt.Errorf("%w: partition %d at offset %d", errStalled, number, offset)
			}
		}
	}
	return ctx.Err()
}

// group is the consumer group as the brokers report it.
type group struct {
	member bool          // this consumer is one, and the group has all partitions
	behind map[int]int64 // by partition of this consumer that has more records: the offset to fetch next
	short  map[int]int64 // by partition of this consumer that ends before that: where it ends
}

// inspect asks the brokers for the group. The error is why the group is not
// ready; the group is nil if the brokers did not answer.
func (c *consumer) inspect(ctx context.Context) (*group, error) {
	client, name := c.cluster.Client(), c.config.Kafka.Topic
	described, err := client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{c.config.GroupID}})
	if err == nil && len(described.Groups) == 1 {
		err = described.Groups[0].Error
	}
	if err != nil && strings.Contains(err.Error(), "decode member") { // kafka-go knows the metadata of its own members, and of other old clients
		err = fmt.Errorf("must have members of MS3 only, got another client: %w", err)
	}
	if err != nil || len(described.Groups) != 1 {
		return nil, fmt.Errorf("describe group %s: %w", c.config.GroupID, err)
	}
	own, former := c.members.observe(described.Groups[0])
	if err := remove(ctx, client, c.config.GroupID, former); err != nil {
		c.kafkaLog.Warn().Err(err).Msg("former member not removed")
	}
	assigned, mine := len(partitions(name, described.Groups[0].Members)), partitions(name, own)
	stranger := strangers(name, c.config.GroupID, described.Groups[0].Members)
	g := group{member: len(own) > 0}
	switch state := described.Groups[0].GroupState; {
	case !g.member:
		return &g, fmt.Errorf("not a member of group %s", c.config.GroupID)
	case state != "Stable":
		return &g, fmt.Errorf("group %s: must be Stable, got %s", c.config.GroupID, state)
	case assigned < c.cluster.Partitions():
		g.member = false // kafka-go may have asked a broker that did not know the topic yet
		return &g, fmt.Errorf("group %s: must have %d partitions, got %d", c.config.GroupID, c.cluster.Partitions(), assigned)
	case len(mine) == 0:
		return &g, stranger // a spare member
	}
	committed, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.config.GroupID, Topics: map[string][]int{name: mine}})
	if err != nil {
		return nil, fmt.Errorf("get committed offsets of %s: %w", name, err)
	}
	next := map[int]int64{}
	for _, p := range committed.Topics[name] {
		next[p.Partition] = max(p.CommittedOffset, c.offsets.next(p.Partition))
	}
	// Asked after next is known: a partition that grows must not seem short.
	var ask []kafka.OffsetRequest
	for _, p := range mine {
		ask = append(ask, kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	listed, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{name: ask}})
	if err != nil {
		return nil, fmt.Errorf("get offsets of %s: %w", name, err)
	}
	g.behind, g.short = map[int]int64{}, map[int]int64{}
	for _, p := range listed.Topics[name] {
		switch n := max(next[p.Partition], p.FirstOffset); {
		case p.Error != nil:
		case n < p.LastOffset:
			g.behind[p.Partition] = n
		case n > p.LastOffset:
			g.short[p.Partition] = p.LastOffset
			err = fmt.Errorf("partition %d of %s: must end at offset %d or later, got %d", p.Partition, name, n, p.LastOffset)
		}
	}
	return &g, cmp.Or(err, stranger)
}

// strangers returns an error if another program has partitions of the topic: MS1
// gets none of their messages.
func strangers(topic, group string, members []kafka.DescribeGroupsResponseMember) error {
	for _, m := range members {
		if p := partitions(topic, []kafka.DescribeGroupsResponseMember{m}); len(p) > 0 && !strings.HasPrefix(m.ClientID, clientPrefix) {
			return fmt.Errorf("group %s: must have members of MS3 only, got client %q at %s with the partitions %v", group, m.ClientID, m.ClientHost, p)
		}
	}
	return nil
}

// unread returns the first offset that may be unread in a partition that ends
// before the offset read last. The newer records are those that were written since,
// so they are found by their date. The whole partition may have a week of records,
// and they would keep the newer ones waiting; MS1 resends one that is missed.
func unread(ctx context.Context, client *kafka.Client, topic string, number int, since time.Time, end int64) (int64, error) {
	listed, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: {kafka.TimeOffsetOf(number, since)}},
	})
	if err != nil {
		return 0, err
	}
	for _, p := range listed.Topics[topic] {
		for offset := range p.Offsets {
			if p.Error == nil && offset >= 0 { // -1: no record is so new
				end = offset
			}
			err = p.Error
		}
	}
	return end, err
}

// remove removes former members of this process from the group.
func remove(ctx context.Context, client *kafka.Client, group string, former []string) error {
	if len(former) == 0 {
		return nil
	}
	request := &kafka.LeaveGroupRequest{GroupID: group}
	for _, id := range former {
		request.Members = append(request.Members, kafka.LeaveGroupRequestMember{ID: id})
	}
	resp, err := client.LeaveGroup(ctx, request)
	if err == nil {
		err = resp.Error
	}
	return err
}

// partitions returns the partitions of a topic that the members have.
func partitions(topic string, members []kafka.DescribeGroupsResponseMember) (numbers []int) {
	for _, m := range members {
		for _, t := range m.MemberAssignments.Topics {
			if t.Topic == topic {
				numbers = append(numbers, t.Partitions...)
			}
		}
	}
	return numbers
}
