package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/topic"
)

// payload is as long as a message.
var payload = []byte(strings.Repeat("x", 230))

// joinTimeout is how long the first message may take: until the consumer has
// joined its group.
const joinTimeout = 60 * time.Second

// bare has the library calls of the four hops, in one process or three and over
// real sockets, with nothing around them.
type bare struct {
	socket     *websocket.Conn
	kafka      *kafka.Client
	topic      string
	partitions int
	url        string
	client     *http.Client
	db         *sql.DB
	statement  string
	produced   atomic.Int64 // records; the partitions take turns
	stored     atomic.Int64 // rows; each has another key

	socketURL           string
	frame, record, post atomic.Pointer[func() error] // the next step on each arrival
	done                chan error
	close               []func()
	processes           map[string][]int // this one and the servers
}

// newBare connects everything to the parts. The database must be empty. If apart,
// the calls of MS2 and MS3 are in processes of their own.
func newBare(ctx context.Context, brokers []string, db *sql.DB, servers map[string]int, apart bool) (b *bare, err error) {
	b = bareOn(brokers, "bench."+rand.Text())
	b.db, b.processes = db, map[string][]int{"bench": {os.Getpid()}}
	for name, pid := range servers {
		b.processes[name] = []int{pid}
	}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	table := "bare_" + strings.ToLower(rand.Text())
	b.statement = "INSERT INTO " + table + " VALUES (1, ?, ?, ?, ?)"
	if _, err := db.ExecContext(ctx, "CREATE TABLE "+table+" (session_id BIGINT, service1_timestamp DATETIME(6), service2_timestamp DATETIME(6), "+
		"service3_timestamp DATETIME(6), end_timestamp DATETIME(6), PRIMARY KEY (session_id, service1_timestamp))"); err != nil {
		return nil, fmt.Errorf("create a table: %w", err)
	}
	if err := createTopic(ctx, b.kafka, b.topic, b.partitions); err != nil {
		return nil, err
	}
	b.close = append(b.close, func() { deleteTopics(b.kafka, b.topic) })
	if err := b.serve(); err != nil {
		return nil, err
	}
	if !apart {
		b.consume(ctx, brokers)
	} else {
		if b.socketURL, err = b.spawn(ctx, "ms2", brokers); err == nil {
			_, err = b.spawn(ctx, "ms3", brokers)
		}
		if err != nil {
			return nil, err
		}
	}
	socket, resp, err := websocket.DefaultDialer.DialContext(ctx, b.socketURL, nil)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	b.socket = socket
	b.close = append(b.close, func() { _ = socket.Close() })
	return b, b.join(ctx)
}

// bareOn returns the calls on brokers and a topic, without connections yet.
func bareOn(brokers []string, topicName string) *bare {
	b := &bare{
		kafka: &kafka.Client{Addr: kafka.TCP(brokers...), Transport: &kafka.Transport{}},
		topic: topicName, partitions: topic.Defaults().Partitions,
		client: &http.Client{Transport: &http.Transport{}}, done: make(chan error, 1),
	}
	b.close = append(b.close, b.kafka.Transport.(*kafka.Transport).CloseIdleConnections, b.client.CloseIdleConnections)
	return b
}

// spawn starts the calls of a service in a process of its own, with the settings
// that the services have in their containers. It returns the first line of its
// output.
func (b *bare) spawn(ctx context.Context, name string, brokers []string) (line string, err error) {
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"bare", name, b.topic, b.url}, brokers...)...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "GOMAXPROCS=1", "GOGC=400", "GODEBUG=schedtrace=2147483647"), os.Stderr
	stdin, err := cmd.StdinPipe() // its end ends the process
	if err != nil {
		return "", err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	b.processes[name] = []int{cmd.Process.Pid}
	line, err = bufio.NewReader(stdout).ReadString('\n')
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.finish(fmt.Errorf("the process of %s has ended: %w", name, cmp.Or(cmd.Wait(), io.EOF)))
	}()
	b.close = append(b.close, func() {
		stdin.Close()
		<-ended
	})
	if err != nil {
		return "", fmt.Errorf("bare %s: %w", name, err)
	}
	return strings.TrimSpace(line), nil
}

// bareCommand is the process that [bare.spawn] starts: 'bench bare NAME TOPIC URL
// BROKER...'. It ends with its standard input.
func bareCommand(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) < 4 {
		return errors.New("bare: must have a name, a topic, a URL and brokers")
	}
	brokers := args[3:]
	b := bareOn(brokers, args[1])
	defer b.Close()
	b.url = args[2]
	none := func() error { return nil }
	b.then(func() error { return b.produce(ctx) }, func() error { return b.postStore(ctx) }, none)
	if args[0] == "ms2" {
		if err := b.serve(); err != nil {
			return err
		}
	} else {
		b.consume(ctx, brokers)
	}
	fmt.Fprintln(out, b.socketURL)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, in)
		ended <- err
	}()
	select {
	case err := <-b.done:
		return err
	case err := <-ended:
		return err
	}
}

// Close ends everything in reverse order.
func (b *bare) Close() {
	for i := len(b.close) - 1; i >= 0; i-- {
		b.close[i]()
	}
}

// serve answers WebSocket and POST on one port.
func (b *bare) serve() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return // the dialer has the answer
		}
		defer conn.Close()
		for {
			if _, _, err := conn.ReadMessage(); err != nil {
				return
			}
			b.follow(&b.frame)
		}
	})
	mux.HandleFunc("POST /store", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			return
		}
		b.follow(&b.post)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"outcome":"stored"}`+"\n")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	b.close = append(b.close, func() { _ = server.Close() })
	b.url, b.socketURL = "http://"+l.Addr().String()+"/store", "ws://"+l.Addr().String()+"/ws"
	return nil
}

// consume reads the topic as MS3 does.
func (b *bare) consume(ctx context.Context, brokers []string) {
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: brokers, Topic: b.topic, GroupID: b.topic, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 500 * time.Millisecond,
		StartOffset: kafka.FirstOffset, JoinGroupBackoff: 200 * time.Millisecond, HeartbeatInterval: 500 * time.Millisecond,
		CommitInterval: 100 * time.Millisecond,
	})
	go func() {
		for {
			m, err := r.FetchMessage(ctx)
			if err != nil {
				if ctx.Err() != nil || errors.Is(err, io.EOF) {
					return
				}
				continue
			}
			b.follow(&b.record)
			_ = r.CommitMessages(ctx, m) // asynchronous
		}
	}()
	b.close = append(b.close, func() { _ = r.Close() })
}

// follow does what follows on an arrival and hands its error on.
func (b *bare) follow(what *atomic.Pointer[func() error]) {
	if do := what.Load(); do != nil {
		if err := (*do)(); err != nil {
			b.finish(err)
		}
	}
}

// finish ends a round.
func (b *bare) finish(err error) {
	select {
	case b.done <- err:
	default:
	}
}

// then sets what follows on a frame, a record and a POST.
func (b *bare) then(frame, record, post func() error) {
	b.frame.Store(&frame)
	b.record.Store(&record)
	b.post.Store(&post)
}

func (b *bare) wait(ctx context.Context) error {
	select {
	case err := <-b.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join sends a record through each partition and waits until all have come
// back.
func (b *bare) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	end := func() error { b.finish(nil); return nil }
	b.then(end, end, end)
	for range b.partitions {
		for err := b.produce(ctx); err != nil; err = b.produce(ctx) {
			if ctx.Err() != nil {
				return fmt.Errorf("produce the first record: %w", err)
			}
			b.produced.Add(-1)
			time.Sleep(50 * time.Millisecond) // the partition has no leader yet
		}
		if err := b.wait(ctx); err != nil {
			return fmt.Errorf("fetch the first record: %w", err)
		}
	}
	return nil
}

func (b *bare) write(context.Context) error {
	return b.socket.WriteMessage(websocket.TextMessage, payload)
}

func (b *bare) produce(ctx context.Context) error {
	resp, err := b.kafka.Produce(ctx, &kafka.ProduceRequest{
		Topic: b.topic, Partition: int(b.produced.Add(1)) % b.partitions, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Key: kafka.NewBytes(payload[:32]), Value: kafka.NewBytes(payload)}),
	})
	if err == nil {
		err = resp.Error
	}
	return err
}

func (b *bare) postStore(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, strings.NewReader(string(payload)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return err
}

func (b *bare) insert(ctx context.Context) error {
	const layout = "2006-01-02 15:04:05.000000"
	first := time.UnixMicro(1_700_000_000_000_000 + b.stored.Add(1)).UTC().Format(layout)
	_, err := b.db.ExecContext(ctx, b.statement, first, first, first, first)
	return err
}

// repeat takes the time of an operation again and again for so long.
func repeat(ctx context.Context, long time.Duration, op func(ctx context.Context) (time.Duration, error)) (all []time.Duration, err error) {
	for begin := time.Now(); len(all) == 0 || time.Since(begin) < long; {
		took, err := op(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	return all, nil
}

// call is an operation that ends when its function returns.
func call(f func(context.Context) error) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		begin := time.Now()
		err := f(ctx)
		return time.Since(begin), err
	}
}

// floor measures each hop by itself.
func (b *bare) floor(ctx context.Context, long time.Duration) (Trial, error) {
	// One way: until the other side has the message, when it has it whole.
	arrived := make(chan time.Time, 1)
	arrive := func() error { arrived <- time.Now(); return nil }
	oneWay := func(f func(context.Context) error) func(context.Context) (time.Duration, error) {
		return func(ctx context.Context) (time.Duration, error) {
			begin := time.Now()
			if err := f(ctx); err != nil {
				return 0, err
			}
			select {
			case at := <-arrived:
				return at.Sub(begin), nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}
	b.then(arrive, arrive, func() error { return nil })
	t := Trial{Subject: floorSubject, InFlight: 1, Times: map[string]Percentile{}}
	for _, hop := range []struct {
		name string
		op   func(context.Context) (time.Duration, error)
	}{
		{toMS2, oneWay(b.write)},
		{toMS3, oneWay(b.produce)},
		{toMS1, call(b.postStore)},
		{commit, call(b.insert)},
	} {
		times, err := repeat(ctx, long/4, hop.op)
		if err != nil {
			return t, fmt.Errorf("floor of %s: %w", hop.name, err)
		}
		t.Messages += int64(len(times))
		t.Times[hop.name] = percentiles(times)
	}
	return t, nil
}

// loop measures the four calls chained: each arrival makes the next call, and
// the end of the INSERT sends the next message.
func (b *bare) loop(ctx context.Context, long time.Duration) (Trial, error) {
	subject := bareSubject
	if len(b.processes["ms2"]) > 0 { // it makes the call after the frame, and MS3 the one after the record
		subject = apartSubject
	}
	b.then(
		func() error { return b.produce(ctx) },
		func() error { return b.postStore(ctx) },
		func() error { b.finish(b.insert(ctx)); return nil })
	used, err := cpuTimes(b.processes)
	if err != nil {
		return Trial{}, err
	}
	begin := time.Now()
	times, err := repeat(ctx, long, call(func(ctx context.Context) error { return errors.Join(b.write(ctx), b.wait(ctx)) }))
	if err != nil {
		return Trial{}, fmt.Errorf("%s: %w", subject, err)
	}
	t := Trial{
		Subject: subject, InFlight: 1, Messages: int64(len(times)), Times: map[string]Percentile{},
		PerSecond: float64(len(times)) / time.Since(begin).Seconds(),
	}
	after, err := cpuTimes(b.processes)
	t.CPU = map[string]float64{}
	for name, d := range after {
		t.CPU[name] = micros(d-used[name]) / float64(len(times))
	}
	addNext(t.Times, times)
	return t, err
}

func createTopic(ctx context.Context, client *kafka.Client, name string, partitions int) error {
	resp, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{
		{Topic: name, NumPartitions: partitions, ReplicationFactor: 1},
	}})
	if err == nil {
		err = resp.Errors[name]
	}
	if err != nil {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	return nil
}

// deleteTopics leaves a broker as it was. A broker that ends with the run needs
// no clean-up, so an error is ignored.
func deleteTopics(client *kafka.Client, names ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: names})
}
