package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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

// bare has the library calls of the four hops, in this process and over real
// sockets, with nothing around them.
type bare struct {
	socket     *websocket.Conn
	kafka      *kafka.Client
	topic      string
	partitions int
	url        string
	client     *http.Client
	db         *sql.DB
	produced   atomic.Int64 // records; the partitions take turns
	stored     atomic.Int64 // rows; each has another key

	frame, record, post atomic.Pointer[func() error] // the next step on each arrival
	done                chan error
	close               []func()
	processes           map[string][]int // this one and the servers
}

// newBare connects everything to the parts. The database must be empty.
func newBare(ctx context.Context, brokers []string, db *sql.DB, servers map[string]int) (b *bare, err error) {
	b = &bare{
		processes: map[string][]int{"bench": {os.Getpid()}},
		kafka:     &kafka.Client{Addr: kafka.TCP(brokers...), Transport: &kafka.Transport{}},
		topic:     "bench." + rand.Text(), partitions: topic.Defaults().Partitions,
		client: &http.Client{Transport: &http.Transport{}}, db: db, done: make(chan error, 1),
	}
	for name, pid := range servers {
		b.processes[name] = []int{pid}
	}
	b.close = append(b.close, b.kafka.Transport.(*kafka.Transport).CloseIdleConnections, b.client.CloseIdleConnections)
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if _, err := db.ExecContext(ctx, "CREATE TABLE bare (session_id BIGINT, service1_timestamp DATETIME(6), service2_timestamp DATETIME(6), "+
		"service3_timestamp DATETIME(6), end_timestamp DATETIME(6), PRIMARY KEY (session_id, service1_timestamp))"); err != nil {
		return nil, fmt.Errorf("create a table: %w", err)
	}
	if err := createTopic(ctx, b.kafka, b.topic, b.partitions); err != nil {
		return nil, err
	}
	b.close = append(b.close, func() { deleteTopics(b.kafka, b.topic) })
	if err := b.serve(ctx); err != nil {
		return nil, err
	}
	b.consume(ctx, brokers)
	return b, b.join(ctx)
}

// Close ends everything in reverse order.
func (b *bare) Close() {
	for i := len(b.close) - 1; i >= 0; i-- {
		b.close[i]()
	}
}

// serve answers WebSocket and POST on one port and connects to it.
func (b *bare) serve(ctx context.Context) error {
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
	b.url = "http://" + l.Addr().String() + "/store"
	socket, resp, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+l.Addr().String()+"/ws", nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	b.socket = socket
	b.close = append(b.close, func() { _ = socket.Close() })
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
	_, err := b.db.ExecContext(ctx, "INSERT INTO bare VALUES (1, ?, ?, ?, ?)", first, first, first, first)
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
		return Trial{}, fmt.Errorf("bare loop: %w", err)
	}
	t := Trial{
		Subject: bareSubject, InFlight: 1, Messages: int64(len(times)), Times: map[string]Percentile{},
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
