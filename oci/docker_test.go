package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// docker returns a command for the engine at TRICYCLE_TEST_DOCKER.
func docker(args ...string) *exec.Cmd {
	c := exec.Command("docker", args...)
	c.Env = append(os.Environ(), "DOCKER_HOST="+os.Getenv("TRICYCLE_TEST_DOCKER"))
	return c
}

// ask returns the output of a docker command, without its warnings.
func ask(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	c := docker(args...)
	c.Stdin = stdin
	var said, warned bytes.Buffer
	c.Stdout, c.Stderr = &said, &warned
	if err := c.Run(); err != nil {
		t.Fatalf("docker %s: %v: %s%s", strings.Join(args, " "), err, &said, &warned)
	}
	return said.String()
}

// load loads the image into the engine under a unique name, in the format that
// every version of Docker reads.
func load(t *testing.T, i image) (name string) {
	t.Helper()
	name = fmt.Sprintf("tricycle-test-%s:%d", i.Name, time.Now().UnixNano())
	manifest := map[string]any{"RepoTags": []string{name}, "Config": filepath.Base(i.blobs[0])}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, content []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	var layers []string
	for _, path := range i.blobs {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		add(filepath.Base(path), content)
		layers = append(layers, filepath.Base(path))
	}
	manifest["Layers"] = layers[1:]
	text, err := json.Marshal([]any{manifest})
	if err != nil {
		t.Fatal(err)
	}
	add("manifest.json", text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ask(t, &archive, "load")
	t.Cleanup(func() { ask(t, nil, "image", "rm", name) })
	return name
}

// TestContainers runs each image for this machine's processor without any rights.
// The program runs on a read-only root, serves, answers -healthcheck, writes its
// log as the user of the image into a new volume, and stops on request.
func TestContainers(t *testing.T) {
	if os.Getenv("TRICYCLE_TEST_DOCKER") == "" {
		t.Skip("TRICYCLE_TEST_DOCKER: must be the address of a Docker engine, such as unix:///var/run/docker.sock")
	}
	each(t, func(t *testing.T, i image) {
		if i.platform != "linux/"+runtime.GOARCH {
			t.Skipf("an image for %s does not run on linux/%s", i.platform, runtime.GOARCH)
		}
		name := load(t, i)
		narrow := []string{"run", "--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"}

		said := ask(t, nil, append(narrow, "--rm", name, "-version")...)
		if want := fmt.Sprintf("%s %s (", i.Name, i.version()); !strings.HasPrefix(said, want) {
			t.Errorf("-version: %q, want %s", said, want)
		}

		container := strings.ReplaceAll(name, ":", "-")
		logFile := "/var/log/tricycle/" + i.Name + ".log"
		// The configuration comes from standard input, because the engine may not see our files.
		run := docker(append(narrow, "--interactive", "--name="+container, "--volume="+container+":/var/log/tricycle",
			name, "-config=/dev/stdin")...)
		run.Stdin = strings.NewReader("logging:\n  file: " + logFile + "\n")
		console := func() []byte {
			said, _ := docker("logs", container).CombinedOutput()
			return said
		}
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ask(t, nil, "rm", "--force", container)
			ask(t, nil, "volume", "rm", container)
			_ = run.Wait() // where the test has not come so far
		})

		// It is alive and not ready, because its dependencies are missing. An error of the engine has the name of the
		// container, which may contain 503.
		var health []byte
		for deadline := time.Now().Add(30 * time.Second); !bytes.Contains(health, []byte("503 Service Unavailable")); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("-healthcheck: %s, want 503, because its servers are missing; the console:\n%s", health, console())
			}
			health, _ = docker("exec", container, "/"+i.Name, "-healthcheck").CombinedOutput()
		}

		written := tar.NewReader(strings.NewReader(ask(t, nil, "cp", container+":"+logFile, "-")))
		if h, err := written.Next(); err != nil || fmt.Sprint(h.Uid) != user || h.Size == 0 {
			t.Errorf("%s: %+v, %v, want a log that belongs to %s", logFile, h, err, user)
		}

		ask(t, nil, "stop", container)
		if err := run.Wait(); err != nil {
			t.Errorf("docker stop: %v, want exit status 0; the console:\n%s", err, console())
		}
	})
}

// TestForeignImagesAreSkipped runs TestContainers with images that this machine
// cannot run: they count as skipped, with the reason, and not as passed.
func TestForeignImagesAreSkipped(t *testing.T) {
	foreign := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	want := 0
	for _, i := range images(t) {
		if i.platform == "linux/"+foreign {
			want++
		}
	}
	again := exec.Command(os.Args[0], "-test.v", "-test.run=^TestContainers$/_linux$/^"+foreign+"$")
	again.Env = append(os.Environ(), "TRICYCLE_TEST_DOCKER=unix:///nonexistent")
	out, err := again.CombinedOutput()
	skipped := strings.Count(string(out), "--- SKIP: TestContainers/")
	reasons := strings.Count(string(out), "an image for linux/"+foreign+" does not run on linux/"+runtime.GOARCH)
	if err != nil || want == 0 || skipped != want || reasons != want {
		t.Errorf("%v, %d images skipped with %d reasons, want %d:\n%s", err, skipped, reasons, want, out)
	}
}
