package topic

import "time"

// Hasten shortens the time of a request and of an election, before Run.
func (c *Cluster) Hasten(request, election time.Duration) {
	c.request, c.election = request, election
	c.reopen()
}
