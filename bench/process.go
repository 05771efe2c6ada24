package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the times in /proc, USER_HZ, which is 100 on every
// platform that Go supports.
const clockTick = 10 * time.Millisecond

// cpuTimes returns the processor time that processes have used so far. Its keys
// are their names.
func cpuTimes(processes map[string][]int) (map[string]time.Duration, error) {
	used := map[string]time.Duration{}
	for name, pids := range processes {
		for _, pid := range pids {
			d, err := cpuTime(pid)
			if err != nil {
				return nil, fmt.Errorf("processor time of %s: %w", name, err)
			}
			used[name] += d
		}
	}
	return used, nil
}

// cpuTime returns the processor time that a process has used, in user and in
// kernel mode.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (time.Duration, error) {
	// The name may have spaces and parentheses in it. After it the state is the
	// third field, utime and stime are the 14th and 15th: proc_pid_stat(5).
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("parse /proc/PID/stat: expected 15 fields, found %d", len(fields)+2)
	}
	var ticks time.Duration
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse /proc/PID/stat: %w", err)
		}
		ticks += time.Duration(n)
	}
	return ticks * clockTick, nil
}

// peakMemory returns the most memory that a process has had resident, in MiB.
func peakMemory(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(text)
}

func parsePeak(text []byte) (float64, error) {
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			if err != nil {
				return 0, fmt.Errorf("parse /proc/PID/status: VmHWM: %w", err)
			}
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("parse /proc/PID/status: expected VmHWM")
}

// counter returns the sum of a metric's series at a service's URL.
func counter(ctx context.Context, client *http.Client, url, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		value, ok := strings.CutPrefix(lines.Text(), name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(value[strings.LastIndexByte(value, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("parse metric %s: %w", name, err)
		}
		sum += n
	}
	return sum, lines.Err()
}

// machine describes this machine in a line.
func machine() string {
	model, memory := "unknown processor", ""
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
		}
	}
	info, _ = os.ReadFile("/proc/meminfo")
	if fields := strings.Fields(string(info)); len(fields) > 1 {
		kib, _ := strconv.Atoi(fields[1])
		memory = fmt.Sprintf(", %d GiB", kib>>20)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d cores of %s%s, Linux %s", cores(), model, memory, strings.TrimSpace(string(kernel)))
}
