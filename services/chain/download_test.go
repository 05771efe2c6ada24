package chain

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// peak returns the most memory that MS1 has had, in MiB.
func (c *chain) peak() float64 {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.running["ms1"].Process.Pid))
	if err != nil {
		c.t.Skipf("the memory of another process: %v", err)
	}
	kilobytes, err := strconv.Atoi(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(string(text))[1])
	servicetest.NoError(c.t, err)
	return float64(kilobytes) / 1024
}

// past adds a session whose n messages are a microsecond apart, and returns its
// number.
func (c *chain) past(n int) (id int64) {
	c.t.Helper()
	done, err := c.db.DB.Exec(`INSERT INTO sessions (started_at, ended_at, interval_seconds, in_flight, generated, stored, resent, duplicates, lost, end_reason)
		VALUES ('2026-11-23 10:00:00', '2026-11-23 11:00:00', 3600, 1, ?, ?, 0, 0, 0, 'interval elapsed')`, n, n)
	servicetest.NoError(c.t, err)
	if id, err = done.LastInsertId(); err != nil {
		c.t.Fatal(err)
	}
	_, err = c.db.DB.Exec(fmt.Sprintf(`INSERT INTO messages SELECT %d, @at := '2026-11-23 10:00:00.000000' + INTERVAL seq MICROSECOND,
		@at + INTERVAL 100 MICROSECOND, @at + INTERVAL 200 MICROSECOND, @at + INTERVAL 300 + seq %% 1000 MICROSECOND FROM seq_1_to_%d`, id, n))
	servicetest.NoError(c.t, err)
	return id
}

// A download has every row and takes no more memory for many. Clients that do
// not read hold up nobody, and those that leave leave nothing behind.
// TRICYCLE_TEST_ROWS is the number of rows.
func TestDownload(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("TRICYCLE_TEST_ROWS"))
	if err != nil {
		n = 100_000
	}
	c := newChain(t)
	c.up()
	id := c.past(n)
	c.round(1, 64)
	before := c.peak()
	for _, format := range []string{"csv", "ndjson"} {
		began := time.Now()
		resp, err := http.Get(fmt.Sprintf("http://%s/sessions/%d/messages?format=%s", c.address["ms1"], id, format))
		servicetest.NoError(t, err)
		defer resp.Body.Close()
		first := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
		rows, size := 0, 0
		lines := bufio.NewScanner(resp.Body)
		if format == "csv" {
			lines.Scan() // the names
		}
		for lines.Scan() {
			rows++
			size += len(lines.Text())
			if stamp := first.Add(time.Duration(rows) * time.Microsecond).Format(message.Layout); !strings.Contains(lines.Text()[:min(65, len(lines.Text()))], stamp) {
				t.Fatalf("%s: row %d is %s, want %s", format, rows, lines.Text(), stamp)
			}
		}
		if err := lines.Err(); err != nil || rows != n {
			t.Errorf("%s: got %d rows and error %v, want %d", format, rows, err, n)
		}
		t.Logf("%s: %d rows, %d MiB in %s, at most %.0f MiB of memory, %.0f before", format, rows, size>>20, time.Since(began).Round(time.Millisecond), c.peak(), before)
	}
	if grown := c.peak() - before; grown > 32 {
		t.Errorf("MS1 has grown by %.0f MiB, want at most 32", grown)
	}

	var clients []net.Conn
	for range 4 { // more than may read at once
		conn, err := net.Dial("tcp", c.address["ms1"])
		servicetest.NoError(t, err)
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		fmt.Fprintf(conn, "GET /sessions/%d/messages?format=csv HTTP/1.1\r\nHost: localhost\r\n\r\n", id)
		if _, err := bufio.NewReaderSize(conn, 16).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, conn)
	}
	c.round(2, 64)
	c.get("/sessions/1/messages", http.StatusOK, nil)
	if _, err := c.db.DB.Exec("SET STATEMENT innodb_lock_wait_timeout = 1 FOR DELETE FROM messages WHERE session_id = ?", id); err != nil {
		t.Errorf("the rows are locked by a download: %v", err)
	}
	for _, conn := range clients {
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	servicetest.Eventually(t, 10*time.Second, "nothing reads", func() bool {
		return c.number("SELECT COUNT(*) FROM information_schema.processlist WHERE db = ? AND info LIKE '%FROM messages%' AND id <> CONNECTION_ID()", c.db.Name) == 0
	})
}
