package chain

import (
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
)

// rate runs a session and returns its messages per second, drain included. It
// fails the test if a message is lost or more than 5 % are resent.
func (c *chain) rate(seconds, inFlight int) float64 {
	c.t.Helper()
	began := time.Now()
	s := c.round(seconds, inFlight)
	if s.Resent > s.Generated/20 {
		c.t.Errorf("%d in flight: %d of %d messages were resent, want at most 5 %%", inFlight, s.Resent, s.Generated)
	}
	return float64(s.Stored) / time.Since(began).Seconds()
}

// keepsItsRate starts the chain and compares the rates of two sessions of these
// seconds, with a few messages in flight and with many.
func (c *chain) keepsItsRate(seconds, secondsOfMany int) {
	c.t.Helper()
	c.up()
	few, many := c.rate(seconds, 64), c.rate(secondsOfMany, 4096)
	c.t.Logf("%.0f messages/s with 64 in flight, %.0f with 4096", few, many)
	if many < 0.8*few {
		c.t.Errorf("%.0f messages/s with 4096 in flight, want about the %.0f of 64 or more", many, few)
	}
}

// On a slow link messages wait, some for longer than MS1 waits before it
// resends. With many in flight the rate must not fall below that of a few.
func TestSlowLinks(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]func(t *testing.T) *chain{
		"Kafka": func(t *testing.T) *chain {
			r := relaytest.New(t, "127.0.0.1:0", "")
			r.Delay = 40 * time.Millisecond
			r.To(servertest.Kafka(t, r.Address).Address)
			c := newChain(t)
			for _, service := range []string{"ms2", "ms3"} {
				c.overlays[service]["kafka"].(settings)["brokers"] = []string{r.Address}
			}
			return c
		},
		"MS3": func(t *testing.T) *chain {
			c := newChain(t)
			r := relaytest.New(t, "127.0.0.1:0", c.address["ms1"])
			r.Delay = 100 * time.Millisecond
			c.overlays["ms3"]["ms1"].(settings)["url"] = "http://" + r.Address + "/store"
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slow(t).keepsItsRate(3, 4)
		})
	}
}

// With a distant database messages wait and must not count as lost: with
// many in flight the rate must not fall below that of a few.
func TestDistantDatabase(t *testing.T) {
	c := newChain(t)
	r := relaytest.New(t, "127.0.0.1:0", c.db.Address)
	r.Delay = 40 * time.Millisecond
	c.overlays["ms1"]["database"].(settings)["address"] = r.Address
	c.keepsItsRate(4, 8)
}
