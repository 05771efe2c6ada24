package allinone

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

const (
	readyTimeout = 30 * time.Second // for -once; a real server may be slow
	openTimeout  = 10 * time.Second // for the command that opens a browser
)

// limits is how long -once waits.
type limits struct {
	database time.Duration // for a missing embedded database, or one that does not record the end of the session
	stop     time.Duration // for the answer of /stop after the drain
}

// attend waits until MS1 is ready and prints how to use it. With Once, it runs a
// session instead and returns when that has ended.
func (t *trio) attend(ctx context.Context) error {
	service, ok := t.ms1.wait(ctx)
	if !ok {
		return nil
	}
	address, _ := program.Reach(service.Address())
	url := "http://" + address
	waiting := ctx
	if t.config.Once {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, readyTimeout)
		defer cancel()
	}
	err := t.untilReady(waiting, address, "")
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("not ready after %s: %w", readyTimeout, err)
	case t.config.Once:
		return t.once(ctx, service, url)
	}
	token := "" // for /start and /stop
	if t.config.TokenFile != "" {
		token = fmt.Sprintf(`-H "Authorization: Bearer $(cat %s)" `, quote(t.config.TokenFile))
	}
	t.screen.print("MS1 listens on %s\n\nThe page: %[1]s/\n\n  curl %[2]s%[1]s/start\n  curl %[2]s'%[1]s/start?interval=5&in_flight=64'\n  curl %[1]s/status\n  curl %[2]s%[1]s/stop\n", url, token)
	t.screen.say("The rows", t.rows(0))
	if t.config.Open {
		if err := openPage(ctx, url+"/"); err != nil {
			t.screen.print("The page was not opened: %v", err)
		}
	}
	<-ctx.Done()
	return nil
}

// openers are the commands that open a URL in the user's browser.
var openers = map[string][]string{"darwin": {"open"}, "windows": {"rundll32", "url.dll,FileProtocolHandler"}}

// openPage opens the URL in the user's browser, whose output is discarded.
func openPage(ctx context.Context, url string) error {
	command, ok := openers[runtime.GOOS]
	if !ok {
		command = []string{"xdg-open"}
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return exec.CommandContext(ctx, command[0], append(command[1:], url)...).Run()
}

// once runs one session over HTTP. If another client has started one, it waits
// for its end first.
func (t *trio) once(ctx context.Context, service *ms1.Service, url string) error {
	t.screen.print("GET %s/start", url)
	var answer struct {
		SessionID int64  `json:"session_id"`
		Detail    string `json:"detail"` // of a problem
	}
	status, err := t.get(ctx, url+"/start", &answer)
	for err == nil && status == http.StatusConflict {
		t.screen.print("waiting for another client: %s", answer.Detail)
		for retry.Pause(ctx, askEvery) && service.Status(ctx).State != ms1.Idle {
		}
		status, err = t.get(ctx, url+"/start", &answer)
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return nil
	case err != nil:
		return fmt.Errorf("start a session: %w", err)
	case status != http.StatusAccepted:
		return fmt.Errorf("start a session: %s", answer.Detail)
	}
	id := answer.SessionID
	for missing := time.Duration(0); missing <= t.limits.database; {
		now, err := service.Session(ctx, id)
		if err == nil {
			t.screen.progress(seen(now.Session), now.InFlight, now.State == ms1.Idle)
			if now.State == ms1.Idle {
				return t.summarise(*now.Session)
			}
		}
		if err != nil || now.Session.Error != "" || t.embedded != nil && t.embedded.Ready(ctx) != nil {
			missing += askEvery
		} else {
			missing = 0
		}
		if !retry.Pause(ctx, askEvery) {
			break
		}
	}
	return t.breakOff(ctx, service, url, id)
}

// breakOff ends the session with /stop, which answers after the drain. Figures
// that are not recorded are an error of MS1.
func (t *trio) breakOff(ctx context.Context, service *ms1.Service, url string, id int64) error {
	drain := time.Duration(t.config.Interaction.DrainSeconds) * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain+t.limits.stop)
	defer cancel()
	if _, err := t.get(ctx, url+"/stop", &struct{}{}); err != nil {
		return fmt.Errorf("stop the session: %w", err)
	}
	now, err := service.Session(ctx, id)
	if err != nil {
		return err
	}
	t.screen.progress(seen(now.Session), now.InFlight, true)
	return t.summarise(*now.Session)
}

// seen fills in the total time of a session that another one has followed.
func seen(s *ms1.Summary) ms1.Summary {
	if s.TotalSeconds == nil {
		s.TotalSeconds = new(s.EndedAt.Time().Sub(s.StartedAt.Time()).Seconds())
	}
	return *s
}

// summarise prints the figures of a session that has ended. Lost messages are an
// error.
func (t *trio) summarise(s ms1.Summary) error {
	t.screen.print("\nsession %d (%s)", s.ID, *s.EndReason)
	if s.Error != "" {
		t.screen.print("  ERROR  %s", s.Error)
	}
	t.screen.print("  total time of the interaction  %.3f s", *s.TotalSeconds)
	t.screen.print("  messages generated             %d", *s.Generated)
	t.screen.print("  stored %d, resent %d, duplicates %d, lost %d", *s.Stored, *s.Resent, *s.Duplicates, *s.Lost)
	if h := s.Hops; h != nil {
		t.screen.print("  ms1 to ms2   %s\n  ms2 to ms3   %s\n  ms3 to ms1   %s\n  whole round  %s", h.ToMS2, h.ToMS3, h.ToMS1, h.Round)
		if h.Commit != nil {
			t.screen.print("  commit       %s", h.Commit)
		}
	}
	t.screen.print("")
	t.screen.say("The rows", t.rows(s.ID))
	t.screen.say("The log", filepath.Join(t.config.Data, "ms1.log"))
	if s.Error != "" {
		return fmt.Errorf("session %d: %s", s.ID, s.Error)
	}
	if *s.Lost > 0 {
		return fmt.Errorf("session %d: lost %d of %d messages", s.ID, *s.Lost, *s.Generated)
	}
	return nil
}

// rows returns a command that shows rows of a session, 0 for the last one.
func (t *trio) rows(sessionID int64) string {
	which := "(SELECT MAX(id) FROM sessions)"
	if sessionID > 0 {
		which = fmt.Sprint(sessionID)
	}
	query := quote("SELECT * FROM messages WHERE session_id = " + which + " ORDER BY service1_timestamp LIMIT 10")
	d := t.config.Database
	host, port, err := net.SplitHostPort(d.Address)
	if err != nil { // there is no address
		return fmt.Sprintf("sqlite3 %s %s", quote(t.databaseFile()), query)
	}
	return fmt.Sprintf("mariadb --host=%s --port=%s --user=%s --password %s --execute=%s", quote(host), quote(port), quote(d.User), quote(d.Name), query)
}

// quote returns s as one word for a shell.
func quote(s string) string {
	if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
