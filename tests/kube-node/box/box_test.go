package box

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Aim: dropping all and adding one leaves one, and a container that asks for nothing has what containerd gives.
func TestCapabilities(t *testing.T) {
	admin := slices.Index(capabilities, "NET_ADMIN")
	if got, err := Capabilities([]string{"NET_ADMIN"}, []string{"ALL"}, false); err != nil || !slices.Equal(got, []int{admin}) {
		t.Errorf("%v %v", got, err)
	}
	if got, _ := Capabilities(nil, nil, false); len(got) != len(granted) || slices.Contains(got, admin) {
		t.Errorf("%v", got)
	}
	if got, _ := Capabilities([]string{"ALL"}, []string{"cap_net_raw"}, false); len(got) != len(capabilities)-1 {
		t.Errorf("%v", got)
	}
	if _, err := Capabilities(nil, []string{"FLYING"}, false); err == nil {
		t.Error("an unknown capability is taken")
	}
}

// Aim: a container sees its own files, user, rights and processes; `exec` joins it; what it writes stays in it; it ends when told.
func TestContainer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root: namespaces and mounts")
	}
	folder := t.TempDir()
	volume, scratch := filepath.Join(folder, "volume"), filepath.Join(folder, "scratch")
	for _, path := range []string{volume, scratch} {
		if err := os.Mkdir(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(volume+"/greeting", []byte("hello"), 0o644)
	keep, _ := Capabilities([]string{"NET_ADMIN"}, []string{"ALL"}, false)
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	spec := &Spec{
		Hostname: "web-0", Scratch: scratch, Dir: "/new/work", Env: []string{"COLOUR=red", "PATH=/usr/bin:/bin"},
		Mounts: []Mount{{volume, "/srv/of/nobody", true}, {volume, "/var/run/kube-node-test", true}}, Files: map[string]string{"/etc/hosts": "10.244.0.9 web-0\n"},
		Argv: []string{"sh", "-c", `trap 'echo bye; exit 7' TERM; echo $$ $(id -u):$(id -G) $(hostname) $COLOUR $(cat /var/run/kube-node-test/greeting) $(cat /etc/hosts) $(pwd)
			touch /srv/of/nobody/x 2>/dev/null || echo read-only; grep CapBnd /proc/self/status; echo mine > /tmp/kube-node-mine; echo up; while :; do sleep 0.05; done`},
		User: User{UID: 1337, GID: 1338, Groups: []int{2000}, Capabilities: keep, NoNewRights: true},
	}
	read, write, _ := os.Pipe()
	process, err := Start(spec, netns, write, write)
	if err != nil {
		t.Fatal(err)
	}
	write.Close()
	text := readUntil(t, read, "up\n")
	for _, want := range []string{"1 1337:1338 2000 web-0 red hello 10.244.0.9 web-0 /new/work", "read-only", "CapBnd:\t0000000000001000"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	var out bytes.Buffer
	code, err := process.Join(spec, []string{"sh", "-c", "id -u; hostname; cat /proc/1/comm; grep CapBnd /proc/self/status; exit 5"}, nil, &out, &out, nil)
	if err != nil || code != 5 || out.String() != "1337\nweb-0\nsh\nCapBnd:\t0000000000001000\n" {
		t.Errorf("exec: %d %v %q", code, err, out.String())
	}
	for _, path := range []string{"/tmp/kube-node-mine", "/srv/of", "/run/kube-node-test"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("what the container made is outside: %s", path)
		}
	}
	process.Signal(syscall.SIGTERM)
	select {
	case <-process.Done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if process.Code != 7 {
		t.Errorf("code %d", process.Code)
	}
}

// Aim: a program that does not exist, and a volume that does not, are said by name.
func TestCannotStart(t *testing.T) {
	netns, _ := os.Open("/proc/self/ns/net")
	for _, it := range []struct {
		spec Spec
		want string
	}{
		{Spec{Argv: []string{"no-such-program"}}, `exec: "no-such-program": executable file not found in $PATH`},
		{Spec{Argv: []string{"/bin/true"}, Mounts: []Mount{{"/no/such/folder", "/data", false}}}, "cannot mount at /data"},
	} {
		it.spec.Scratch, it.spec.Dir = t.TempDir(), "/"
		_, err := Start(&it.spec, netns, nil, nil)
		if err == nil || !strings.Contains(err.Error(), it.want) {
			t.Errorf("%v, want %s", err, it.want)
		}
	}
}

// Aim: containers end with the program that started them, however it ends.
func TestDiesWithTheNode(t *testing.T) {
	if scratch := os.Getenv("BOX_TEST_PARENT"); scratch != "" {
		netns, _ := os.Open("/proc/self/ns/net")
		spec := &Spec{Scratch: scratch, Dir: "/", Argv: []string{"sh", "-c", "echo $$; sleep 1000 & wait"}, User: User{UID: 1337, GID: 1337}}
		if _, err := Start(spec, netns, os.Stdout, os.Stdout); err != nil {
			t.Fatal(err)
		}
		unix.Pause()
	}
	read, write, _ := os.Pipe()
	parent := exec.Command("/proc/self/exe", "-test.run", "TestDiesWithTheNode")
	parent.Env, parent.Stdout = append(os.Environ(), "BOX_TEST_PARENT="+t.TempDir()), write
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	readUntil(t, read, "1\n")
	parent.Process.Kill()
	parent.Wait()
	// The pipe ends when the last process that holds it does.
	read.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := read.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the container outlives the program: %v", err)
	}
}

func readUntil(t *testing.T, from *os.File, end string) string {
	t.Helper()
	from.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, chunk := "", make([]byte, 4096)
	for !strings.HasSuffix(text, end) {
		count, err := from.Read(chunk)
		if err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		text += string(chunk[:count])
	}
	return text
}
