package node

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// logBytesMax is how much of one run's output is kept: beyond it the file begins anew.
	logBytesMax = 10 << 20
	lineBytes   = 16 << 10
	followPause = 100 * time.Millisecond
)

// output of one run of a container, one line per line: time, stream, F (or P: its line goes on in the next), text.
type output struct {
	lock sync.Mutex
	file *os.File
	size int
}

func logPath(folder, container string, previous bool) string {
	name := container + ".log"
	if previous {
		name = container + ".previous.log"
	}
	return filepath.Join(folder, "logs", name)
}

// openLog begins the file of a new run; the run before it becomes the previous one.
func (node *Node) openLog(folder, container string) (*output, error) {
	path := logPath(folder, container, false)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot keep the container's output: %w", err)
	}
	_ = os.Rename(path, logPath(folder, container, true))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot keep the container's output: %w", err)
	}
	return &output{file: file}, nil
}

// pipe is the writing end for one stream of the container.
func (output *output) pipe(stream string) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot keep the container's output: %w", err)
	}
	go func() {
		defer read.Close()
		reader := bufio.NewReaderSize(read, lineBytes)
		for {
			line, partial, err := reader.ReadLine()
			if err != nil {
				return
			}
			output.write(stream, line, partial)
		}
	}()
	return write, nil
}

func (output *output) write(stream string, line []byte, partial bool) {
	mark := "F"
	if partial {
		mark = "P"
	}
	output.lock.Lock()
	defer output.lock.Unlock()
	if output.size > logBytesMax {
		_ = output.file.Truncate(0)
		output.size = 0
	}
	count, _ := fmt.Fprintf(output.file, "%s %s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), stream, mark, line)
	output.size += count
}

// reading is what of an output is asked for.
type reading struct {
	follow, timestamps bool
	tail               int
	since              time.Time
	bytesMax           int64
}

// read copies a run's output to a writer; with follow until `over` says that the run has ended and all is read.
func (asked *reading) read(path string, into io.Writer, over func() bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if asked.tail >= 0 {
		if err := skip(file, asked.tail); err != nil {
			return err
		}
	}
	left := asked.bytesMax
	reader, rest := bufio.NewReader(file), ""
	for {
		// What is written before it is over is read after.
		ended := over()
		part, err := reader.ReadString('\n')
		rest += part
		if err == io.EOF && asked.follow && !ended {
			if flusher, is := into.(interface{ Flush() }); is {
				flusher.Flush()
			}
			time.Sleep(followPause)
			continue
		}
		if err != nil {
			return nil
		}
		text := asked.line(rest)
		rest = ""
		if left > 0 && int64(len(text)) >= left {
			_, _ = io.WriteString(into, text[:left])
			return nil
		}
		left -= int64(len(text))
		if _, err := io.WriteString(into, text); err != nil {
			return nil
		}
	}
}

// line as it is shown, or nothing.
func (asked *reading) line(stored string) string {
	words := strings.SplitN(stored, " ", 4)
	if len(words) < 4 {
		return ""
	}
	if at, err := time.Parse(time.RFC3339Nano, words[0]); err != nil || at.Before(asked.since) {
		return ""
	}
	text := words[3]
	if words[2] == "P" {
		text = strings.TrimSuffix(text, "\n")
	}
	if asked.timestamps {
		text = words[0] + " " + text
	}
	return text
}

// skip goes to where the last lines begin.
func skip(file *os.File, tail int) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(text)
	for ; tail > 0 && at > 0; tail-- {
		at = strings.LastIndexByte(string(text[:at-1]), '\n') + 1
	}
	_, err = file.Seek(int64(at), io.SeekStart)
	return err
}
