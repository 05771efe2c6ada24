package ms3

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// A few kilobytes that become many megabytes are neither decompressed nor
// fetched indefinitely, whatever their codec and however many records they
// have. The records around them are processed.
func TestDecompressionIsBounded(t *testing.T) {
	_, address := topictest.Cluster(t) // a real broker may refuse them, as it should
	k, store := topictest.For(t, address), newMS1(t)
	topictest.Create(t, k, "max.message.bytes", "10000000")
	source := newMS2(t, k)
	good, records := messages(40)
	zeros := bytes.Repeat([]byte{0}, 2*maxDecompressed)
	produce := func(codec compress.Compression, values ...[]byte) {
		t.Helper()
		var batch []kafka.Record
		for _, v := range values {
			batch = append(batch, kafka.Record{Value: kafka.NewBytes(v)})
		}
		resp, err := source.Client().Produce(t.Context(), &kafka.ProduceRequest{Topic: k.Topic, Partition: 0,
			RequiredAcks: kafka.RequireAll, Compression: codec, Records: kafka.NewRecordReader(batch...)})
		if err != nil || resp.Error != nil {
			t.Fatal(err, resp.Error)
		}
	}
	source.produce(0, records[:10]...)
	letters := 0
	for _, codec := range []compress.Compression{compress.Zstd, compress.Gzip, compress.Snappy, compress.Lz4} {
		produce(codec, zeros)
		produce(codec, records[0].Value, zeros, records[1].Value, []byte("x"))
		produce(codec, zeros, zeros)
		letters += 3
		source.produce(0, records[letters:letters+3]...)
		produce(codec, records[10].Value, records[11].Value) // compressed, and small enough
	}
	source.produce(0, records[10:]...)

	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := start(t, k, store.URL)
	servicetest.Eventually(t, time.Minute, "all good ones posted", func() bool { return store.got() == len(good) })
	servicetest.Eventually(t, time.Minute, "all bad ones buried", func() bool {
		return r.Metric("tricycle_ms3_dead_letters_total", "malformed") >= float64(letters)
	})
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 128<<20 {
		t.Errorf("the heap has grown by %d MiB, want at most 128", grown>>20)
	}
	for _, letter := range topictest.Read(t, k, k.DeadLetterTopic, letters) {
		if headers := topic.Headers(letter.Headers); !strings.Contains(headers.Get(topic.HeaderReason), "decompressed") {
			t.Errorf("got the reason %q, want one that names the decompression", headers.Get(topic.HeaderReason))
		}
	}
	if n := r.Log.Count("batch not decompressed"); n != letters {
		t.Errorf("%d batches are logged, want %d", n, letters)
	}
}

// Lengths that the compressed data state are not allocated before they are
// checked.
func TestStatedSizesAreChecked(t *testing.T) {
	xerial := "\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
	for name, data := range map[string]string{
		"frame of 4 GiB":        xerial + "\xff\xff\xff\xff\x00",
		"block of 4 GiB":        "\xff\xff\xff\xff\x0f\x00",
		"framed block of 2 GiB": xerial + "\x00\x00\x00\x06\xff\xff\xff\xff\x07\x00",
		"cut frame":             xerial + "\x00\x00",
		"no snappy":             "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := boundedCodec{&compress.SnappyCodec}.NewReader(&io.LimitedReader{R: strings.NewReader(data + "next batch"), N: int64(len(data))})
			batch, err := io.ReadAll(r)
			runtime.ReadMemStats(&after)
			if err != nil || !bytes.Contains(batch, unreadable) {
				t.Errorf("got %q, %v, want the record that stands for the batch", batch, err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated, want at most 1 MiB", n)
			}
		})
	}
}

// A batch that the end of the connection cuts is fetched again, whatever its
// codec: its records are no dead letters.
func TestBatchOfABrokenConnection(t *testing.T) {
	for _, codec := range []compress.Codec{&compress.ZstdCodec, &compress.GzipCodec, &compress.SnappyCodec, &compress.Lz4Codec} {
		t.Run(codec.Name(), func(t *testing.T) {
			var compressed bytes.Buffer
			w := codec.NewWriter(&compressed)
			if _, err := w.Write(bytes.Repeat([]byte("record"), 1000)); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			size := compressed.Len()
			compressed.Truncate(size - 1)
			r := boundedCodec{codec}.NewReader(&io.LimitedReader{R: &compressed, N: int64(size)})
			if batch, err := io.ReadAll(r); err != io.ErrUnexpectedEOF {
				t.Errorf("got %q, %v, want the error of a cut stream", batch, err)
			}
		})
	}
}
