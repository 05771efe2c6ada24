package ms1

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/message"
)

const (
	// maxReads is the number of pages that are read from the database at once, so
	// that readers leave connections for commits.
	maxReads = 2
	// readTimeout bounds the read of a page: the slowest messages of a session
	// are found among all.
	readTimeout = 30 * time.Second
	// distributeTimeout bounds the reads of a whole session.
	distributeTimeout = 2 * time.Minute
	// pageRows is the number of messages that are read or written at once.
	pageRows = 1000
	// pageSessions is the number of sessions in an answer.
	pageSessions = 20
	maxSessions  = 100
	// someMessages is the number of messages in an answer of JSON.
	someMessages = 100
	// maxKnown is the number of sessions whose distributions are remembered.
	maxKnown = 32
)

// history reads what is in the database.
type history struct {
	engine    *engine
	unreadLog zerolog.Logger // why a session was not read, at most one event a second
	reads     chan struct{}  // has a token for each read

	mu    sync.Mutex
	known map[knownSession]*Distributions
}

// knownSession is a session that has ended, until another late message is
// stored.
type knownSession struct{ id, stored int64 }

func newHistory(e *engine) *history {
	return &history{engine: e, unreadLog: logging.Limit(e.log), reads: make(chan struct{}, maxReads), known: map[knownSession]*Distributions{}}
}

// read returns a page of messages.
func (h *history) read(ctx context.Context, id int64, s Selection) ([]message.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	select {
	case h.reads <- struct{}{}:
		defer func() { <-h.reads }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for database: %w", ctx.Err())
	}
	return h.engine.store.Messages(ctx, id, s)
}

// unread answers a request whose data could not be read.
func (h *history) unread(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNoSession) {
		httpserver.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("no session %q", r.PathValue("id"))}.Write(w)
		return
	}
	h.unreadLog.Warn().Err(err).Msg("session not read")
	httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: "database: not ready"}.Write(w)
}

// pathSession returns the session whose number is in the path. No session has an
// invalid one.
func (h *history) pathSession(r *http.Request) (Session, error) {
	var id int64
	if whole(&id, math.MaxInt64)(r.PathValue("id")) != nil {
		return Session{}, ErrNoSession
	}
	return h.engine.sessionRow(r.Context(), id)
}

// sessions answers GET /sessions.
func (h *history) sessions(w http.ResponseWriter, r *http.Request) {
	before, limit := int64(0), pageSessions
	if err := query(r, map[string]func(string) error{"before": whole(&before, math.MaxInt64), "limit": whole(&limit, maxSessions)}); err != nil {
		badRequest(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), beginTimeout)
	defer cancel()
	rows, err := h.engine.store.Sessions(ctx, before, limit+1)
	if err != nil {
		h.unread(w, r, err)
		return
	}
	answer := struct {
		Sessions []Session `json:"sessions"`
		Next     *int64    `json:"next"`
	}{Sessions: append([]Session{}, rows[:min(limit, len(rows))]...)}
	for i, row := range answer.Sessions {
		if row.EndReason != nil {
			continue
		}
		if now, err := h.engine.sessionRow(ctx, row.ID); err == nil {
			answer.Sessions[i] = now
		}
	}
	if len(rows) > limit {
		answer.Next = &rows[limit-1].ID
	}
	httpserver.JSON(w, http.StatusOK, answer)
}

// maxNamed is the number of lost messages in an answer of /sessions/{id}.
const maxNamed = 100

// session answers GET /sessions/{id}.
func (h *history) session(w http.ResponseWriter, r *http.Request) {
	row, err := h.pathSession(r)
	var named []LostMessage
	if err == nil && row.EndReason != nil {
		ctx, cancel := context.WithTimeout(r.Context(), beginTimeout)
		defer cancel()
		named, err = h.engine.store.LostMessages(ctx, row.ID, maxNamed)
	}
	if err != nil {
		h.unread(w, r, err)
		return
	}
	httpserver.JSON(w, http.StatusOK, struct {
		Session
		LostMessages []LostMessage `json:"lost_messages"`
	}{row, append([]LostMessage{}, named...)})
}

// hops answers GET /sessions/{id}/hops.
func (h *history) hops(w http.ResponseWriter, r *http.Request) {
	row, err := h.pathSession(r)
	var found *Distributions
	if err == nil {
		found, err = h.distributions(r.Context(), row)
	}
	if err != nil {
		h.unread(w, r, err)
		return
	}
	httpserver.JSON(w, http.StatusOK, map[string]any{"session_id": row.ID, "hops": found})
}

// distributions returns those of a session, nil if it has no rows. Of the
// current or last session of this process they are in memory.
func (h *history) distributions(ctx context.Context, row Session) (*Distributions, error) {
	if l := h.engine.ledger(); l != nil && l.sessionID == row.ID {
		return l.hopsUntilNow().distributions(), nil
	}
	if row.Stored == nil { // another process has it open
		return nil, nil
	}
	key := knownSession{row.ID, *row.Stored}
	h.mu.Lock()
	found, ok := h.known[key]
	h.mu.Unlock()
	if ok {
		return found, nil
	}
	meter := newHopMeter()
	ctx, cancel := context.WithTimeout(ctx, distributeTimeout)
	defer cancel()
	if err := h.each(ctx, row.ID, 0, func() error { return nil }, func(m message.Message) { meter.add(m.Hops()) }); err != nil {
		return nil, err
	}
	found = meter.distributions()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= maxKnown {
		clear(h.known)
	}
	h.known[key] = found
	return found, nil
}

// each calls f with all messages of a session after a stamp in the order of
// their keys, and paged after each page.
func (h *history) each(ctx context.Context, id int64, after message.Stamp, paged func() error, f func(message.Message)) error {
	for {
		page, err := h.read(ctx, id, Selection{After: after, Limit: pageRows})
		if err != nil {
			return err
		}
		for _, m := range page {
			f(m)
		}
		if err = paged(); err != nil || len(page) < pageRows {
			return err
		}
		after = page[len(page)-1].Service1
	}
}

// messages answers GET /sessions/{id}/messages. CSV and lines without a limit
// are streamed page by page.
func (h *history) messages(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	order, format, which := "sent", accepted(r), Selection{}
	err := query(r, map[string]func(string) error{
		"order":  oneOf(&order, "sent", "slowest"),
		"format": oneOf(&format, asJSON, asCSV, asLines),
		"limit":  whole(&which.Limit, pageRows),
		"after": func(value string) error {
			t, err := time.Parse(message.Layout, value)
			if which.After = message.StampOf(t); err != nil || which.After < 0 || t.Format(message.Layout) != value {
				return fmt.Errorf("must be a timestamp such as 2026-11-23T10:15:30.123456Z, got %q", value)
			}
			return nil
		},
	})
	which.Slowest = order == "slowest"
	if err != nil {
		badRequest(w, err)
		return
	}
	row, err := h.pathSession(r)
	if err != nil {
		h.unread(w, r, err)
		return
	}
	all := format != asJSON && !which.Slowest && which.Limit == 0
	if which.Limit == 0 {
		which.Limit = someMessages
	}
	if all {
		which.Limit = pageRows
	}
	page, err := h.read(r.Context(), row.ID, which)
	if err != nil {
		h.unread(w, r, err)
		return
	}
	w.Header().Set("Content-Type", mediaTypes[format])
	if format == asJSON {
		writePage(w, page, which)
		return
	}
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="session-%d.%s"`, row.ID, format))
	out := rowWriter(w, format)
	for _, m := range page {
		out.write(m)
	}
	err = out.flush()
	if err == nil && all && len(page) == pageRows && r.Method != http.MethodHead {
		err = h.each(r.Context(), row.ID, page[len(page)-1].Service1, out.flush, out.write)
	}
	if err != nil { // the client must notice that it does not have all
		httpserver.Abort(w, r)
	}
}
