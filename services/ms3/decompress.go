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

// maxDecompressed is the largest record batch, in bytes before and after
// decompression, that MS3 takes. MS2's have at most some 40 KiB.
const maxDecompressed = 8 << 20

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
// indefinitely. It fails only if the connection broke.
func (c boundedCodec) NewReader(r io.Reader) io.ReadCloser {
	batch, err := c.read(r)
	if err != nil {
		broken, end := io.Pipe()
		_ = end.CloseWithError(err)
		return broken
	}
	return io.NopCloser(bytes.NewReader(batch))
}

func (c boundedCodec) read(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDecompressed))
	rest, unread := io.Copy(io.Discard, r)
	if err := errors.Join(err, unread); err != nil {
		return nil, err
	}
	if l, ok := r.(*io.LimitedReader); ok && l.N > 0 { // kafka-go's, whose limit is the size of the batch
		return nil, io.ErrUnexpectedEOF
	}
	if rest == 0 {
		if batch, err := c.decompress(data); err == nil {
			return batch, nil
		}
	}
	return standIn(len(data) + int(rest)), nil
}

var zstdDecoder, _ = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxDecompressed)) // the options are valid

func (c boundedCodec) decompress(data []byte) ([]byte, error) {
	switch compress.Compression(c.Code()) {
	case compress.Zstd:
		return zstdDecoder.DecodeAll(data, nil)
	case compress.Snappy:
		// Its decoder allocates what the lengths in the data state.
		if err := checkSnappy(data); err != nil {
			return nil, err
		}
	}
	decoder := c.Codec.NewReader(bytes.NewReader(data))
	defer decoder.Close()
	batch, err := io.ReadAll(io.LimitReader(decoder, maxDecompressed+1))
	if err == nil && len(batch) > maxDecompressed {
		err = errSize
	}
	return batch, err
}

var errSize = errors.New("size out of range")

// checkSnappy returns an error if a length that the data state is beyond the
// data or [maxDecompressed]. The data are one block, or blocks framed as the
// Java library xerial/snappy-java does: a header of 16 bytes, then four bytes
// of length before each block.
func checkSnappy(data []byte) error {
	const header = 16
	if !bytes.HasPrefix(data, []byte("\x82SNAPPY\x00")) {
		if n, err := s2.DecodedLen(data); err != nil || n > maxDecompressed {
			return errors.Join(errSize, err)
		}
		return nil
	}
	for total, rest := 0, data[min(header, len(data)):]; len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return errSize
		}
		size := binary.BigEndian.Uint32(rest)
		n, err := s2.DecodedLen(rest[4 : 4+size])
		if total += n; err != nil || total > maxDecompressed {
			return errors.Join(errSize, err)
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
