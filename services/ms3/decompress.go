package ms3

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go/compress"
)

const (
	// maxDecompressed is the largest record batch, in bytes after
	// decompression, that MS3 takes. MS2's have at most some 40 KiB.
	maxDecompressed = 8 << 20
	// maxWindow bounds the memory of a zstd decoder, in bytes.
	maxWindow = 8 << 20
)

// unreadable is the value of the one record that stands for a batch that is
// larger than [maxDecompressed] or cannot be decompressed.
var unreadable = []byte("tricycle: batch not decompressed")

// boundDecompression makes kafka-go, which decompresses whole batches into
// memory, use codecs that give up beyond [maxDecompressed].
var boundDecompression = sync.OnceFunc(func() {
	for i, codec := range compress.Codecs {
		if codec != nil {
			compress.Codecs[i] = boundedCodec{codec}
		}
	}
})

type boundedCodec struct{ compress.Codec }

// NewReader implements [compress.Codec]. The result is the whole batch or the
// record that stands for it: an error would make kafka-go fetch the batch again
// indefinitely.
func (c boundedCodec) NewReader(r io.Reader) io.ReadCloser {
	return &boundedReader{codec: c.Codec, in: &input{r: r}}
}

type boundedReader struct {
	codec compress.Codec
	in    *input
	batch io.Reader // nil before the first Read
}

func (r *boundedReader) Read(p []byte) (int, error) {
	if r.batch == nil {
		batch, err := r.decompress()
		if err != nil {
			return 0, err
		}
		r.batch = bytes.NewReader(batch)
	}
	return r.batch.Read(p)
}

func (r *boundedReader) Close() error { return nil }

// decompress returns the batch, or one that stands for it. Its error is that
// the connection broke.
func (r *boundedReader) decompress() ([]byte, error) {
	size := 0
	if l, ok := r.in.r.(*io.LimitedReader); ok {
		size = int(l.N)
	}
	decoder, err := r.open()
	if err == nil {
		var batch []byte
		batch, err = io.ReadAll(io.LimitReader(decoder, maxDecompressed+1))
		_ = decoder.Close()
		if err == nil && len(batch) <= maxDecompressed {
			return batch, nil
		}
	}
	if _, err := io.Copy(io.Discard, r.in); err != nil || r.in.err != nil {
		return nil, errors.Join(err, r.in.err)
	}
	return standIn(size), nil
}

func (r *boundedReader) open() (io.ReadCloser, error) {
	switch compress.Compression(r.codec.Code()) {
	case compress.Zstd:
		d, err := zstd.NewReader(r.in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case compress.Snappy:
		// Its decoder allocates what the lengths in the data state.
		data, err := io.ReadAll(r.in)
		if err == nil {
			err = checkSnappy(data)
		}
		if err != nil {
			return nil, err
		}
		return r.codec.NewReader(bytes.NewReader(data)), nil
	}
	return r.codec.NewReader(r.in), nil
}

var errStatedSize = errors.New("stated size out of range")

// checkSnappy returns an error if a length that the data state is beyond the
// data or [maxDecompressed]. The data are one block, or blocks framed as the
// Java library xerial/snappy-java does: a header of 16 bytes, then four bytes
// of length before each block.
func checkSnappy(data []byte) error {
	const header = 16
	if !bytes.HasPrefix(data, []byte("\x82SNAPPY\x00")) {
		if n, err := s2.DecodedLen(data); err != nil || n > maxDecompressed {
			return errors.Join(errStatedSize, err)
		}
		return nil
	}
	for total, rest := 0, data[min(header, len(data)):]; len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return errStatedSize
		}
		size := binary.BigEndian.Uint32(rest)
		n, err := s2.DecodedLen(rest[4 : 4+size])
		if total += n; err != nil || total > maxDecompressed {
			return errors.Join(errStatedSize, err)
		}
		rest = rest[4+size:]
	}
	return nil
}

// standIn returns a record (https://kafka.apache.org/documentation/#record)
// with the value [unreadable]. kafka-go takes the length that a record states
// for what it has read of its batch, and skips the rest of a batch of which
// nothing remains: so the record states the size of the compressed batch.
func standIn(size int) []byte {
	length := size
	for length > 0 && length+len(binary.AppendVarint(nil, int64(length))) > size {
		length--
	}
	b := binary.AppendVarint(nil, int64(length))
	b = append(b, 0, 0, 0) // attributes, timestamp delta, offset delta
	b = binary.AppendVarint(b, -1)
	b = binary.AppendVarint(b, int64(len(unreadable)))
	return append(append(b, unreadable...), 0) // no headers
}

// input remembers why the compressed data ended early.
type input struct {
	r   io.Reader
	err error
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		i.err = err
	}
	return n, err
}
