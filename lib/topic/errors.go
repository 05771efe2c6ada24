package topic

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// hasNoLeader reports whether a partition is between two leaders, or the topic
// not yet known to every broker.
func hasNoLeader(err error) bool {
	return slices.ContainsFunc([]error{
		kafka.NotLeaderForPartition, kafka.LeaderNotAvailable, kafka.UnknownTopicOrPartition, kafka.OffsetNotAvailable, // of a new leader
		protocol.ErrNoLeader, protocol.ErrNoPartition, protocol.ErrNoTopic,
	}, func(e error) bool { return errors.Is(err, e) })
}

// denied reports whether the broker forbids what was asked.
func denied(err error) bool {
	return errors.Is(err, kafka.TopicAuthorizationFailed) || errors.Is(err, kafka.ClusterAuthorizationFailed)
}

// TooLarge reports whether a produce request exceeded max.message.bytes of the
// topic.
func TooLarge(err error) bool {
	return errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge)
}

// Torn reports whether the broker closed the connection during a request, as it
// does for one larger than its socket.request.max.bytes.
func Torn(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// ErrorType returns the span attribute error.type of a failed request: the name of
// Kafka's error code, timeout or connection.
func ErrorType(err error) string {
	if code, ok := errors.AsType[kafka.Error](err); ok {
		return strings.ReplaceAll(strings.ToLower(code.Title()), " ", "_")
	}
	if failed, ok := errors.AsType[net.Error](err); ok && failed.Timeout() {
		return "timeout"
	}
	return "connection"
}
