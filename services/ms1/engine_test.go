package ms1

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tricycle-relay/tricycle/lib/message"
)

const never = -1

func usual() InteractionConfig { return Defaults().Interaction }

// figures is what must be true of a session, in one comparable value.
type figures struct {
	generated, stored, resent, duplicates, lost int64
	reason                                      EndReason
}

func figuresOf(s Summary) figures {
	return figures{*s.Generated, *s.Stored, *s.Resent, *s.Duplicates, *s.Lost, *s.EndReason}
}

// checkAllStored checks a session in which nothing went wrong. Whether one more
// round begins at the very end of the interval is open.
func checkAllStored(t *testing.T, s Summary, least, inFlight int64) {
	t.Helper()
	n := *s.Generated
	check(t, s, figures{generated: n, stored: n, reason: IntervalElapsed})
	if n < least || n > least+inFlight {
		t.Errorf("%d messages generated, want %d", n, least)
	}
}

func check(t *testing.T, s Summary, want figures) {
	t.Helper()
	if got := figuresOf(s); got != want {
		t.Errorf("figures: got %+v, want %+v", got, want)
	}
}

func TestLockStepSendsTheNextWhenTheLastCameBack(t *testing.T) {
	inBench(t, 100*time.Millisecond, func(t *testing.T, b *bench) {
		most := 0
		back := b.transport.onSend
		b.transport.onSend = func(m message.Message) {
			b.mu.Lock()
			most = max(most, b.current.ledger.account().busy)
			b.mu.Unlock()
			back(m)
		}
		b.begin(10, 1)
		s := b.wait()
		checkAllStored(t, s, 100, 1)
		if most != 1 {
			t.Errorf("%d messages in flight at once, want 1", most)
		}
		if got := *s.TotalSeconds; got < 10 || got > 10.2 {
			t.Errorf("total time %v s, want 10", got)
		}
		if got := s.Hops.ToMS2; got.Max != 0.0001 || got.Negative != 0 {
			t.Errorf("hop to ms2 %+v, want a maximum of 0.1 ms", got)
		}
		for _, want := range []string{"total time of the interaction: 10.", fmt.Sprintf("messages generated: %d", *s.Generated), "interval elapsed", "lost 0"} {
			if !strings.Contains(b.console.String(), want) {
				t.Errorf("log lacks %q:\n%s", want, b.console)
			}
		}
	})
}

// The goroutine that commits a message sends the next one before it answers.
func TestACommitSendsTheNextMessage(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(60, 1)
		synctest.Wait()
		for n := 1; n < 100; n++ {
			b.takes(b.transport.frames()[n-1], OutcomeStored)
			if got := len(b.transport.frames()); got != n+1 {
				t.Fatalf("%d messages sent after %d answers, want %d", got, n, n+1)
			}
		}
	})
}

// A transport that takes nothing holds up no answer.
func TestABlockedTransportDelaysNoCommit(t *testing.T) {
	for _, inFlight := range []int{2, maxDirect, maxDirect + 1, MaxInFlight} {
		t.Run(fmt.Sprint(inFlight, " in flight"), func(t *testing.T) {
			inBench(t, never, func(t *testing.T, b *bench) {
				b.begin(60, inFlight)
				synctest.Wait()
				sent := b.transport.frames()
				b.transport.block = make(chan struct{})
				b.transport.connect(2) // everything is queued again, and the sender blocks
				synctest.Wait()
				for _, m := range sent[:2] {
					b.takes(m, OutcomeStored)
				}
				close(b.transport.block)
				synctest.Wait()
			})
		})
	}
}

// While nothing is lost, lost is the number of messages in flight.
func TestTheFiguresOfAStatusAreOfOneMoment(t *testing.T) {
	inBench(t, 0, func(t *testing.T, b *bench) {
		b.begin(60, 64)
		for range 20000 {
			if s := b.status(t.Context()); *s.Session.Lost != int64(s.InFlight) {
				t.Fatalf("%d in flight, lost %d, want them equal", s.InFlight, *s.Session.Lost)
			}
		}
	})
}

func TestPipelineKeepsInFlightMessagesUnderWay(t *testing.T) {
	inBench(t, 100*time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(3, 256)
		checkAllStored(t, b.wait(), 7680, 256)
		grouped := false
		for _, n := range b.store.batches {
			grouped = grouped || n > 1
			if n > maxBatch {
				t.Errorf("a commit of %d rows, want at most %d", n, maxBatch)
			}
		}
		if !grouped {
			t.Error("no commit took more than one row")
		}
	})
}

func TestKeysIncreaseWhateverTheClockDoes(t *testing.T) {
	inBench(t, 10*time.Millisecond, func(t *testing.T, b *bench) {
		began := time.Now()
		b.wall = func() time.Time {
			if now := time.Now(); now.Sub(began) < time.Second {
				return now
			}
			return time.Now().Add(-time.Hour)
		}
		b.begin(3, 8)
		s := b.wait()
		checkAllStored(t, s, 2400, 8)
		last := message.Stamp(0)
		for _, m := range b.transport.frames() {
			if m.Service1 <= last {
				t.Fatalf("key %s after %s", m.Service1, last)
			}
			last = m.Service1
		}
		if *s.TotalSeconds < 3 || *s.TotalSeconds > 3.2 {
			t.Errorf("total time %v s, want 3: the clock on the wall must not count", *s.TotalSeconds)
		}
		if s.EndedAt < last {
			t.Errorf("the session ended at %s, before its last key %s", s.EndedAt, last)
		}
		if s.Hops.Round.Negative == 0 || !strings.Contains(b.console.String(), "negative") {
			t.Errorf("rounds that seem to end before they begin are not reported: %+v", s.Hops.Round)
		}
	})
}

func TestALostMessageIsResentThenGivenUpAndTheSessionEnds(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		began := time.Now()
		var at []int
		b.transport.onSend = func(message.Message) {
			b.mu.Lock()
			defer b.mu.Unlock()
			at = append(at, int(time.Since(began).Round(time.Second).Seconds()))
		}
		b.begin(10, 1)
		s := b.wait()
		check(t, s, figures{generated: 1, resent: 4, lost: 1, reason: IntervalElapsed})
		if got, want := fmt.Sprint(at), "[0 5 15 35 55]"; got != want { // 5 s, 10 s, then 20 s apart, up to 60 s
			t.Errorf("sent at %s s, want %s", got, want)
		}
		if got := *s.TotalSeconds; got < 60 || got > 60.2 {
			t.Errorf("total time %v s, want 60: the message has its full time", got)
		}
	})
}

func TestGivenUpMessagesMakeRoomForOthers(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(130, 2)
		check(t, b.wait(), figures{generated: 6, lost: 6, resent: 24, reason: IntervalElapsed})
		for _, m := range b.transport.frames() {
			if key := m.Key().String(); !strings.Contains(b.console.String(), key) {
				t.Errorf("the log does not name the lost message %s", key)
			}
		}
	})
}

func TestASessionWithoutConnectionEnds(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(2, 4)
		time.Sleep(time.Second)
		b.transport.connect(0)
		s := b.wait()
		if *s.Generated != *s.Stored+*s.Lost || *s.Lost != 4 {
			t.Errorf("figures %+v, want the 4 that could not be sent as lost", figuresOf(s))
		}
		if n := len(b.current.ledger.outbox); n != 0 {
			t.Errorf("%d messages still in the outbox", n)
		}
	})
}

func TestStopDrainsAndCountsWhatItCouldNotWaitFor(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		id := b.begin(60, 1000)
		time.Sleep(500 * time.Millisecond) // so that the drain ends before a resend
		began := time.Now()
		time.AfterFunc(3*time.Second, func() { // some come back during the drain
			for _, m := range b.transport.frames()[:400] {
				b.takes(m, OutcomeStored)
			}
		})
		s := b.stopSession()
		check(t, s, figures{generated: 1000, stored: 400, lost: 600, reason: Stopped})
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("stopping took %s", took)
		}
		if got := b.status(t.Context()).State; got != Idle {
			t.Errorf("state %s after the answer to /stop, want idle", got)
		}
		// Late messages move from lost to stored.
		late := b.transport.frames()[400]
		b.takes(late, OutcomeStored)
		b.takes(late, OutcomeRepeat)
		row, err := b.sessionRow(t.Context(), id)
		if err != nil || *row.Stored != 401 || *row.Lost != 599 {
			t.Errorf("stored %d, lost %d, %v; want 401 and 599", *row.Stored, *row.Lost, err)
		}
		if got := b.status(t.Context()).Session; *got.Stored != 401 {
			t.Errorf("status has %d stored, want 401", *got.Stored)
		}
	})
}

func TestTwoStopsGetTheSameAnswer(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(60, 10)
		time.Sleep(500 * time.Millisecond) // so that the drain ends before a resend
		var wg sync.WaitGroup
		var got [2]Summary
		for i := range got {
			wg.Go(func() {
				var err error
				if got[i], err = b.engine.stop(t.Context(), func() {}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if figuresOf(got[0]) != figuresOf(got[1]) || got[0].ID != got[1].ID {
			t.Errorf("two answers: %+v and %+v", got[0], got[1])
		}
		if _, err := b.engine.stop(t.Context(), func() {}); !errors.Is(err, errIdle) {
			t.Errorf("stopping an idle MS1: %v, want errIdle", err)
		}
	})
}

func TestStopCutsTheDrainAfterTheIntervalShort(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(1, 1)
		time.Sleep(3 * time.Second)
		if got := b.status(t.Context()).State; got != Draining {
			t.Fatalf("state %s, want draining", got)
		}
		s := b.stopSession()
		check(t, s, figures{generated: 1, resent: 1, lost: 1, reason: IntervalElapsed})
		if *s.TotalSeconds > 7.2 {
			t.Errorf("total time %v s, want 3 and the drain of 4", *s.TotalSeconds)
		}
	})
}

func TestReconnectSendsAtOnceWhatWasUnderWay(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(1, 3)
		time.Sleep(100 * time.Millisecond)
		b.transport.connect(0)
		time.Sleep(time.Second)
		b.transport.connect(2)
		synctest.Wait()
		b.wantFrames(6) // each message twice
		for _, m := range b.transport.frames()[:3] {
			b.takes(m, OutcomeStored)
		}
		check(t, b.wait(), figures{generated: 3, stored: 3, resent: 3, reason: IntervalElapsed})
	})
}

func TestLateMessagesMustBePlausible(t *testing.T) {
	const (
		start  = message.Stamp(1_795_601_730_000_000)
		second = message.Stamp(1e6)
		day    = 24 * 3600 * second
		week   = 7 * day
	)
	// Both sessions had an interval of 10 s; the interrupted one was closed a
	// week later.
	for _, c := range []struct {
		name              string
		lost              int64 // when it ended; -1: interrupted
		first, two, three message.Stamp
		end               message.Stamp
		want              Outcome
	}{
		{"interrupted, in order", -1, start, start + 1, start + 2, start + 3, OutcomeStored},
		{"interrupted, weeks in the topic", -1, start, start + 1, start + 4*week, start + 4*week, OutcomeStored},
		{"interrupted, negative hops", -1, start + day, start, start + 2, start + 3, OutcomeStored},
		{"interrupted, before its start", -1, start - 1, start, start, start, OutcomeUnknown},
		{"interrupted, after its interval", -1, start + 11*second + day, start + week, start + week, start + week, OutcomeUnknown},
		{"interrupted, first in the future", -1, start + day + 2, start + 2, start + 2, start + 1, OutcomeUnknown},
		{"interrupted, second in the future", -1, start, start + week, start + 2, start + 3, OutcomeUnknown},
		{"interrupted, third in the future", -1, start, start + 1, start + day + 4, start + 3, OutcomeUnknown},
		{"interrupted, third in the year 9999", -1, start, start + 1, 253402300799999999, start + 3, OutcomeUnknown},
		{"interrupted, second long before the first", -1, start, start - day - 1, start + 2, start + 3, OutcomeUnknown},
		{"interrupted, third in the year 1970", -1, start, start + 1, 1, start + 3, OutcomeUnknown},
		{"lost one, in order", 1, start, start + 1, start + 2, start + 3, OutcomeStored},
		{"lost one, at its end", 1, start + 10*second, start + 1, start + 2, start + 3, OutcomeStored},
		{"lost one, after its end", 1, start + 10*second + 1, start + 1, start + 2, start + 3, OutcomeUnknown},
		{"lost one, before its start", 1, start - 1, start + 1, start + 2, start + 3, OutcomeUnknown},
		{"lost none", 0, start, start + 1, start + 2, start + 3, OutcomeUnknown},
		{"lost one, third in the future", 1, start, start + 1, start + week, start + 3, OutcomeUnknown},
		{"lost one, second in the year 1970", 1, start, 1, start + 2, start + 3, OutcomeUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stored int64
			reason := Stopped
			row := Session{StartedAt: start, EndedAt: start + 10*second, IntervalSeconds: 10, Stored: &stored, EndReason: &reason}
			if c.lost >= 0 {
				row.Lost = &c.lost
			} else {
				row.EndedAt = start + week
			}
			m := message.Message{Service1: c.first, Service2: c.two, Service3: c.three, End: c.end}
			if got := late(&row, false, m); got != c.want || (*row.Stored == 1) != (got == OutcomeStored) {
				t.Errorf("got %q with %d stored, want %q", got, *row.Stored, c.want)
			}
		})
	}
}

func TestASessionThatSomebodyElseHasEnded(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(60, 1)
		time.Sleep(500 * time.Millisecond)
		if _, err := b.store.CloseInterrupted(t.Context(), message.StampOf(time.Now())); err != nil {
			t.Fatal(err)
		}
		b.takes(b.transport.frames()[0], OutcomeStored) // as a late one
		check(t, b.wait(), figures{generated: 1, lost: 1, reason: Interrupted})
		b.wantFrames(1)
		if text := b.console.String(); !strings.Contains(text, "NOT RECORDED in the database: session is not open") {
			t.Errorf("console does not show it:\n%s", text)
		}
	})
}

func TestARowThatSomebodyHasClosedByHandTakesNothing(t *testing.T) {
	reason := EndReason("closed by hand")
	row := Session{ID: 1, StartedAt: 1, EndedAt: 9, EndReason: &reason}
	if late(&row, false, message.Message{Service1: 5, Service2: 5, Service3: 5, End: 5}) != OutcomeUnknown || row.Stored != nil || row.Lost != nil {
		t.Errorf("found %+v, want it as it was", row)
	}
}

func TestADatabaseThatTakesNoRowsIsNotReady(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(60, 1)
		time.Sleep(100 * time.Millisecond)
		m := b.transport.frames()[0]
		release := b.store.block()
		for range 2 {
			if _, err := b.back(m); err == nil {
				t.Fatal("stored in a database that does not answer")
			}
			synctest.Wait()
		}
		if err := b.engine.databaseReady(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("readiness: %v, want the error of the commit", err)
		}
		release()
		b.takes(m, OutcomeStored)
		if b.engine.databaseReady(t.Context()) == nil {
			t.Error("ready as soon as one commit has succeeded: it may refuse others")
		}
		time.Sleep(steadyTime)
		b.takes(b.transport.frames()[1], OutcomeStored)
		if err := b.engine.databaseReady(t.Context()); err != nil {
			t.Errorf("readiness after a commit: %v", err)
		}
		b.stopSession()
		for _, line := range []string{"database takes no rows", "database takes rows again"} {
			if n := strings.Count(b.console.String(), line); n != 1 {
				t.Errorf("%d times on the console: %s", n, line)
			}
		}
	})
}

func TestTheSameMessageAHundredTimesAtOnceIsOneRow(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(1, 1)
		time.Sleep(100 * time.Millisecond)
		m := b.transport.frames()[0]
		outcomes := map[Outcome]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				got, err := b.back(m)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				outcomes[got]++
				mu.Unlock()
			})
		}
		wg.Wait()
		if outcomes[OutcomeStored] != 1 || outcomes[OutcomeRepeat] != 99 {
			t.Errorf("outcomes %v, want 1 stored and 99 repeats", outcomes)
		}
		s := b.wait()
		if *s.Stored+*s.Lost != *s.Generated || *s.Duplicates != 99 || len(b.store.rows) != 1 {
			t.Errorf("figures %+v with %d rows", figuresOf(s), len(b.store.rows))
		}
	})
}

func TestASessionWhoseRowWasDeletedMakesWay(t *testing.T) {
	inBench(t, 10*time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(60, 1)
		time.Sleep(time.Second)
		b.store.fail(ErrNoSession)
		if _, err := b.engine.stop(t.Context(), func() {}); !errors.Is(err, ErrNoSession) {
			t.Errorf("stop: %v, want that there is no such session", err)
		}
		if text := b.console.String(); strings.Count(text, "NOT RECORDED in the database: no such session") != 1 {
			t.Errorf("console does not show it once:\n%s", text)
		}
		b.store.fail(nil)
		b.begin(1, 1) // at once: no row is waited for that is gone
		checkAllStored(t, b.wait(), 99, 2)
	})
}

func TestShutdownEndsTheSession(t *testing.T) {
	for name, fault := range map[string]error{"with the database": nil, "without it": errors.New("connection refused")} {
		t.Run(name, func(t *testing.T) {
			inBench(t, never, func(t *testing.T, b *bench) {
				b.begin(60, 5)
				time.Sleep(500 * time.Millisecond) // so that the drain ends before a resend
				b.store.fail(fault)
				began := time.Now()
				b.stop()
				if took := time.Since(began); took > 7*time.Second {
					t.Errorf("stopping took %s", took)
				}
				if text := b.console.String(); !strings.Contains(text, "(shutdown") || strings.Contains(text, "NOT RECORDED") != (fault != nil) {
					t.Errorf("console:\n%s", text)
				}
				if (b.ended != nil) != (fault != nil) {
					t.Errorf("the engine ended with %v", b.ended)
				}
				if _, err := b.start(t.Context(), 1, 1, func() {}); err == nil {
					t.Error("a stopped MS1 starts a session")
				}
			})
		})
	}
}

func TestAcknowledgedRowsThatAreMissing(t *testing.T) {
	inBench(t, 10*time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(1, 1)
		time.Sleep(500 * time.Millisecond)
		b.store.mu.Lock()
		clear(b.store.rows)
		b.store.mu.Unlock()
		summary := b.wait()
		for what, text := range map[string]string{"status": summary.Error, "console": b.console.String()} {
			if !strings.Contains(text, "count rows: must be at least") {
				t.Errorf("%s does not report it: %s", what, text)
			}
		}
		b.stop()
		if missing := new(missingRowsError); !errors.As(b.ended, &missing) || missing.rows >= missing.acknowledged {
			t.Errorf("the engine ended with %v, want a missingRowsError", b.ended)
		}
	})
}

func TestACommitThatHangsDoesNotHoldTheEndUp(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.begin(60, 2)
		time.Sleep(500 * time.Millisecond) // so that the drain ends before a resend
		m := b.transport.frames()[0]
		release := b.store.block()
		late := make(chan Outcome, 1)
		time.AfterFunc(3*time.Second, func() {
			got, _ := b.back(m)
			late <- got
		})
		s := b.stopSession() // gives up at 4 s, records by 5 s
		check(t, s, figures{generated: 2, lost: 2, reason: Stopped})
		if named := b.store.named[1]; len(named) != 2 || named[0] != (LostMessage{m.Service1, "commit failed"}) {
			t.Errorf("lost messages %v, want both", named)
		}
		release() // the commit comes through, behind the figures
		if got := <-late; got != OutcomeStored {
			t.Errorf("the message that hung: %q, want it stored late", got)
		}
		if got := b.status(t.Context()).Session; *got.Stored != 1 || *got.Lost != 1 {
			t.Errorf("stored %d, lost %d, want 1 and 1", *got.Stored, *got.Lost)
		}
	})
}

func TestAClientThatLeavesDoesNotLeaveHalfASession(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		left, leave := context.WithCancel(t.Context())
		leave()
		if id, err := b.start(left, 1, 1, func() {}); id != 1 || err != nil {
			t.Errorf("start: %d, %v, want session 1", id, err)
		}
		b.wait()
	})
}

func TestAHundredStartsAtOnceAreOneSession(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		started, busy := 0, 0
		for range 100 {
			wg.Go(func() {
				_, err := b.start(t.Context(), 1, 1, func() {})
				mu.Lock()
				defer mu.Unlock()
				var e *busyError
				switch {
				case err == nil:
					started++
				case errors.As(err, &e):
					busy++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if started != 1 || busy != 99 {
			t.Errorf("%d started, %d busy, want 1 and 99", started, busy)
		}
		b.wait()
		if len(b.store.sessions) != 1 {
			t.Errorf("%d rows of sessions", len(b.store.sessions))
		}
	})
}

// Counting the rows of a crashed session of a day takes minutes. A message of it may
// be back before: to the database its session is still open, and to this MS1 it is
// unknown.
func TestDuringTheRecoveryNothingIsReadyOrRefused(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		var notReady *notReadyError
		b.engine.mu.Lock()
		b.engine.recovered = false
		b.engine.mu.Unlock()
		if got, err := b.back(message.Message{SessionID: 1, Service1: 1}); !errors.Is(err, errRecovering) {
			t.Errorf("%q, %v, want an error, so that it is tried again", got, err)
		}
		if _, err := b.start(t.Context(), 1, 1, func() {}); !errors.As(err, &notReady) || !errors.Is(notReady.missing["database"], errRecovering) {
			t.Errorf("got %v, want that sessions are being closed", err)
		}
		b.engine.mu.Lock()
		b.engine.recovered = true
		b.engine.mu.Unlock()
		b.begin(1, 1)
	})
}

// Somebody has locked the row of the crashed session.
func TestARecoveryThatFailsIsReported(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.store.locked = true
		ctx, cancel := context.WithCancel(t.Context())
		go b.engine.recover(ctx)
		time.Sleep(10 * time.Second)
		if out := b.console.String(); !strings.Contains(out, "the row is locked") {
			t.Errorf("after ten seconds the console has %q", out)
		}
		cancel()
	})
}

func TestACrashedSessionIsClosedByTheNextStart(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(1, 1)
		b.wait()
		b.store.mu.Lock()
		b.store.sessions[0].EndReason = nil // as a crash leaves it
		b.store.mu.Unlock()
		b.begin(1, 1)
		b.wait()
		if row := b.store.sessions[0]; *row.EndReason != Interrupted {
			t.Errorf("row %+v, want it interrupted", row)
		}
	})
}

// rowOf is a request of one message on its way to the store.
func rowOf(session int64, n int) []insert {
	return []insert{{message: message.Message{SessionID: session, Service1: message.Stamp(n + 1)}, span: noop.Span{}}}
}

func TestCommitsAreOfOneSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		store.sessions = make([]Session, 2)
		release := store.block()
		settled := map[error]int{} // messages
		c := newCommitter(store, func(batch []insert, err error) { settled[err] += len(batch) })
		go c.add(rowOf(1, 0)) // commits its own, the others leave theirs to a goroutine
		synctest.Wait()
		for i, session := range []int64{2, 2, 1, 1, 2} {
			c.add(rowOf(session, i+1))
		}
		release()
		synctest.Wait()
		if want := []int{1, 2, 2, 1}; !slices.Equal(store.batches, want) {
			t.Errorf("commits of %v messages, want %v", store.batches, want)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		c.run(ended)
		for i := range 100 { // whatever comes now has an outcome too
			c.add(rowOf(1, i))
		}
		if want := map[error]int{nil: 6, errStopping: 100}; !maps.Equal(settled, want) {
			t.Errorf("got the outcomes %v, want %v", settled, want)
		}
	})
}

// The end of the program settles what waits, and ends the running commit.
func TestTheEndRefusesWhatWaitsForACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		store.block()
		var failed atomic.Int64
		c := newCommitter(store, func(batch []insert, err error) {
			if err != nil {
				failed.Add(int64(len(batch)))
			}
		})
		go c.add(rowOf(1, 0))
		synctest.Wait()
		c.add(rowOf(1, 1))
		ended, end := context.WithCancel(t.Context())
		end()
		c.run(ended)
		if got := failed.Load(); got != 2 {
			t.Errorf("%d messages failed when run returned, want 2", got)
		}
	})
}

// A message that arrives as the committer stops has one outcome.
func TestTheEndDuringTheStartOfACommit(t *testing.T) {
	t.Parallel()
	const rounds = 10_000
	var settled atomic.Int64
	store := newMemoryStore()
	store.sessions = make([]Session, 1)
	ended, end := context.WithCancel(t.Context())
	end()
	for range rounds {
		c := newCommitter(store, func(batch []insert, _ error) { settled.Add(int64(len(batch))) })
		var both sync.WaitGroup
		both.Go(func() { c.add(rowOf(1, 0)) })
		both.Go(func() { c.run(ended) })
		both.Wait()
	}
	if n := settled.Load(); n != rounds {
		t.Errorf("%d of %d messages have an outcome", n, rounds)
	}
}
