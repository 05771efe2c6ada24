package ms3

import (
	"slices"

	"github.com/segmentio/kafka-go"
)

// clientPrefix begins the client id of each MS3 in the consumer group.
const clientPrefix = "tricycle-ms3-"

// members tracks this process's members of the consumer group. After trouble
// with a broker kafka-go joins as a new member, and the group waits for the
// former one until its session times out.
//
// A member is this process's only if it has its client id, which no other
// process has, and it is former only if it was the one member of this process
// in a stable group. So a replica's member is never taken for one.
type members struct {
	clientID string
	current  string   // member id; "" if not known
	former   []string // member ids
}

// rejoin makes the current member a former one.
func (m *members) rejoin() {
	if m.current != "" {
		m.former = append(m.former, m.current)
	}
	m.current = ""
}

// observe takes a description of the group. It returns this process's members
// that are not former, and the former ones that may be removed: not before
// their successor has joined, because an empty group delays the next member.
func (m *members) observe(g kafka.DescribeGroupsResponseGroup) (own []kafka.DescribeGroupsResponseMember, remove []string) {
	own = slices.DeleteFunc(slices.Clone(g.Members), func(o kafka.DescribeGroupsResponseMember) bool { return o.ClientID != m.clientID })
	if slices.ContainsFunc(own, func(o kafka.DescribeGroupsResponseMember) bool {
		return o.MemberID != m.current && !slices.Contains(m.former, o.MemberID)
	}) {
		m.rejoin()
	}
	for _, o := range own {
		if slices.Contains(m.former, o.MemberID) {
			remove = append(remove, o.MemberID)
		}
	}
	own = slices.DeleteFunc(own, func(o kafka.DescribeGroupsResponseMember) bool { return slices.Contains(remove, o.MemberID) })
	if len(own) == 0 {
		return nil, nil
	}
	m.former = remove // the others are gone
	if g.GroupState == "Stable" && len(own) == 1 {
		m.current = own[0].MemberID
	}
	return own, remove
}
