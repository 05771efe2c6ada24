package message

import (
	"bytes"
	"math"
)

// The encoding that [Message.Append] writes is nearly all that receivers see,
// so it has a decoder and an encoder of its own that work on bytes and do not
// allocate. Whatever else a sender may write takes the general path.

// stampBytes is the length of an encoded stamp with its quotes.
const stampBytes = len(Layout) + 2

// decodeCanonical decodes data if it is, byte for byte, what Append writes for
// a message at the stage. Otherwise it reports false and decides nothing: the
// data may still be valid.
func decodeCanonical(data []byte, stage Stage) (m Message, ok bool) {
	rest, ok := bytes.CutPrefix(data, separators[0])
	if !ok {
		return m, false
	}
	digits := 0
	for ; digits < len(rest) && isDigit(rest[digits]); digits++ {
		d := int64(rest[digits] - '0')
		if m.SessionID > (math.MaxInt64-d)/10 {
			return m, false
		}
		m.SessionID = m.SessionID*10 + d
	}
	if digits == 0 || rest[0] == '0' {
		return m, false
	}
	rest = rest[digits:]
	for i := 1; i < len(fields); i++ {
		if rest, ok = bytes.CutPrefix(rest, separators[i]); !ok {
			return m, false
		}
		if i > int(stage) {
			if rest, ok = bytes.CutPrefix(rest, null); !ok {
				return m, false
			}
			continue
		}
		if len(rest) < stampBytes || rest[0] != '"' || rest[stampBytes-1] != '"' {
			return m, false
		}
		s := parseStamp(rest[1 : stampBytes-1])
		if s == 0 {
			return m, false
		}
		*m.stamp(i) = s
		rest = rest[stampBytes:]
	}
	return m, len(rest) == 1 && rest[0] == '}'
}

// separators stand between the value of the field before and that of field i.
var separators = [len(fields)][]byte{
	[]byte(`{"session_id":`), []byte(`,"service1_timestamp":`), []byte(`,"service2_timestamp":`), []byte(`,"service3_timestamp":`), []byte(`,"end_timestamp":`),
}

var null = []byte("null")

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

const (
	microsPerSecond = 1_000_000
	microsPerDay    = 24 * 60 * 60 * microsPerSecond
	// epochDays is the number of days from 0000-03-01 to 1970-01-01. Years
	// that begin in March have their leap day at the end.
	epochDays = 719_468
)

var daysIn = [13]int{1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}

// parseStamp parses a stamp in [Layout]. It returns 0 for anything else, and
// for an instant that is no valid Stamp.
func parseStamp(b []byte) Stamp {
	_ = b[len(Layout)-1]
	for i := range len(Layout) {
		if c := Layout[i]; isDigit(c) != isDigit(b[i]) || !isDigit(c) && c != b[i] {
			return 0
		}
	}
	year, month, day := 100*two(b[0:])+two(b[2:]), two(b[5:]), two(b[8:])
	hour, minute, second := two(b[11:]), two(b[14:]), two(b[17:])
	if month < 1 || month > 12 || day < 1 || day > daysIn[month] || hour > 23 || minute > 59 || second > 59 {
		return 0
	}
	if leap := year%4 == 0 && (year%100 != 0 || year%400 == 0); month == 2 && day == 29 && !leap {
		return 0
	}
	if month < 3 {
		year, month = year-1, month+12
	}
	if year < 1969 {
		return 0 // before 1970, and the divisions below expect no negative year
	}
	days := 365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - epochDays
	micros := 10_000*two(b[20:]) + 100*two(b[22:]) + two(b[24:])
	s := Stamp(days)*microsPerDay + Stamp(3600*hour+60*minute+second)*microsPerSecond + Stamp(micros)
	return max(s, 0)
}

func two(b []byte) int { return 10*int(b[0]-'0') + int(b[1]-'0') }

// append appends the stamp as on the wire, without quotes.
func (s Stamp) append(b []byte) []byte {
	if s == 0 {
		return append(b, null...)
	}
	if s < 0 || s > latest { // the callers' mistake; the receiver refuses it
		return s.Time().AppendFormat(b, Layout)
	}
	days, micros := int(s/microsPerDay)+epochDays, int(s%microsPerDay)
	era := days / 146_097 // of 400 years
	dayOfEra := days % 146_097
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36_524 - dayOfEra/146_096) / 365
	dayOfYear := dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	month := (5*dayOfYear + 2) / 153 // 0 is March
	day := dayOfYear - (153*month+2)/5 + 1
	year := 400*era + yearOfEra
	if month += 3; month > 12 {
		year, month = year+1, month-12
	}
	seconds := micros / microsPerSecond
	micros %= microsPerSecond
	b = append(b, Layout...)
	to := b[len(b)-len(Layout):]
	put(to[0:], year/100)
	put(to[2:], year%100)
	put(to[5:], month)
	put(to[8:], day)
	put(to[11:], seconds/3600)
	put(to[14:], seconds/60%60)
	put(to[17:], seconds%60)
	put(to[20:], micros/10_000)
	put(to[22:], micros/100%100)
	put(to[24:], micros%100)
	return b
}

func put(b []byte, n int) { b[0], b[1] = byte('0'+n/10), byte('0'+n%10) }
