package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Aim: $(NAME) is what Kubernetes makes of it: known names replaced, unknown ones left, $$ an escape.
func TestExpand(t *testing.T) {
	own, services := map[string]string{"A": "1", "B": "two words"}, map[string]string{"A": "never", "S": "svc"}
	for text, want := range map[string]string{
		"": "", "plain": "plain", "$(A)-$(B)-$(S)": "1-two words-svc", "$(NOT)": "$(NOT)", "$$(A)": "$(A)", "$$$(A)": "$1", "$A": "$A", "100$": "100$",
		"$(A": "$(A", "$()": "$()", "a$(A)$(A)b": "a11b", "$(": "$(", "$x)": "$x)",
	} {
		if got := expand(text, own, services); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// Aim: an image is found by its whole name, without its tag or digest, and without its registry; command and args follow Kubernetes' rule.
func TestImages(t *testing.T) {
	table := filepath.Join(t.TempDir(), "images.json")
	os.WriteFile(table, []byte(`{"web": {"entrypoint": ["e"], "command": ["c"]}, "web:2": {"entrypoint": ["two"]}, "team/web": {"entrypoint": ["team"]}}`), 0o644)
	for reference, want := range map[string]string{
		"web": "e", "web:1": "e", "web:2": "two", "web@sha256:abc": "e", "example.org/team/web:v1@sha256:abc": "team", "localhost:5000/web:3": "e",
	} {
		image, err := lookUp(table, reference)
		if err != nil || image.Entrypoint[0] != want {
			t.Errorf("%s: %v %v", reference, image, err)
		}
	}
	for _, reference := range []string{"other", "other/web", "web/other"} {
		if _, err := lookUp(table, reference); err == nil || !strings.Contains(err.Error(), reference) {
			t.Errorf("%s: %v", reference, err)
		}
	}
	image := Image{Entrypoint: []string{"e"}, Command: []string{"c"}}
	for want, it := range map[string][2][]string{"e c": {}, "e a": {nil, {"a"}}, "x": {{"x"}, nil}, "x a": {{"x"}, {"a"}}} {
		if got := strings.Join(image.argv(it[0], it[1]), " "); got != want {
			t.Errorf("%v: %s, want %s", it, got, want)
		}
	}
}

// Aim: what a pod may ask about itself is answered as by the kubelet, and what it may not by an error.
func TestFields(t *testing.T) {
	pod := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"a/b": "c", "d": "e"}, Annotations: map[string]string{"x": "y"}},
		Spec: core.PodSpec{NodeName: "one", ServiceAccountName: "sa", Containers: []core.Container{{
			Name: "app", Resources: core.ResourceRequirements{
				Requests: core.ResourceList{"cpu": resource.MustParse("1500m")}, Limits: core.ResourceList{"memory": resource.MustParse("100Mi")},
			},
		}}},
	}
	facts := &facts{pod: pod, podIPs: []string{"10.0.0.1", "fd00::1"}, hostIPs: []string{"10.0.0.9"}, capacity: core.ResourceList{"cpu": resource.MustParse("4")}}
	for path, want := range map[string]string{
		"metadata.name": "p", "metadata.namespace": "n", "metadata.uid": "u", "metadata.labels['a/b']": "c", "metadata.annotations['x']": "y",
		"metadata.labels": "a/b=\"c\"\nd=\"e\"", "spec.nodeName": "one", "spec.serviceAccountName": "sa", "status.podIP": "10.0.0.1",
		"status.podIPs": "10.0.0.1,fd00::1", "status.hostIP": "10.0.0.9",
	} {
		if got, err := facts.field(path); err != nil || got != want {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	if _, err := facts.field("spec.containers"); err == nil {
		t.Error("an unknown path is answered")
	}
	for _, it := range []struct{ resource, divisor, want string }{
		{"requests.cpu", "1", "2"}, {"requests.cpu", "1m", "1500"}, {"limits.memory", "1Mi", "100"}, {"limits.cpu", "1", "4"}, {"requests.memory", "1", "0"},
	} {
		ref := &core.ResourceFieldSelector{Resource: it.resource, Divisor: resource.MustParse(it.divisor)}
		if got, err := facts.resources(ref, &pod.Spec.Containers[0]); err != nil || got != it.want {
			t.Errorf("%s by %s: %q %v", it.resource, it.divisor, got, err)
		}
	}
}

// Aim: a volume's update is one swap: readers see the old files or the new ones, what is gone goes, and the same content changes nothing.
func TestWrite(t *testing.T) {
	path, pod := filepath.Join(t.TempDir(), "volume"), &core.Pod{}
	put := func(files map[string]string) string {
		t.Helper()
		all := map[string]*file{}
		for name, text := range files {
			all[name] = &file{content: []byte(text), mode: 0o640}
		}
		if err := write(path, all, pod); err != nil {
			t.Fatal(err)
		}
		at, _ := os.Readlink(filepath.Join(path, "..data"))
		return at
	}
	seen := func() string {
		var all []string
		for _, name := range []string{"a", "b", "deep/c"} {
			if text, err := os.ReadFile(filepath.Join(path, name)); err == nil {
				all = append(all, name+"="+string(text))
			}
		}
		return strings.Join(all, " ")
	}
	first := put(map[string]string{"a": "1", "deep/c": "3"})
	if got := seen(); got != "a=1 deep/c=3" {
		t.Errorf("first: %s", got)
	}
	if again := put(map[string]string{"a": "1", "deep/c": "3"}); again != first {
		t.Error("the same files were written again")
	}
	put(map[string]string{"a": "2", "b": "4"})
	if got := seen(); got != "a=2 b=4" {
		t.Errorf("then: %s", got)
	}
	entries, _ := os.ReadDir(path)
	if len(entries) != 4 {
		t.Errorf("left over: %v", entries)
	}
	if err := write(path, map[string]*file{"../out": {content: []byte("x"), mode: 0o644}}, pod); err == nil {
		t.Error("a path out of the volume is taken")
	}
}

// Aim: output is shown as it was written, its end on demand, and followed until the run is over.
func TestLogs(t *testing.T) {
	folder := t.TempDir()
	output, err := (&Node{}).openLog(folder, "app")
	if err != nil {
		t.Fatal(err)
	}
	path := logPath(folder, "app", false)
	for _, line := range []string{"one", "two", "three"} {
		output.write("stdout", []byte(line), line == "two")
	}
	show := func(asked reading) string {
		var text strings.Builder
		if err := asked.read(path, &text, func() bool { return true }); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	for want, asked := range map[string]reading{
		"one\ntwothree\n": {tail: -1}, "three\n": {tail: 1}, "": {tail: 0}, "one\n": {tail: -1, bytesMax: 4}, "one\ntwothree": {tail: -1, bytesMax: 12},
	} {
		if got := show(asked); got != want {
			t.Errorf("%+v: %q, want %q", asked, got, want)
		}
	}
	if got := show(reading{tail: -1, since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since later: %q", got)
	}
	var text strings.Builder
	looks := 0
	asked := reading{tail: -1, follow: true}
	_ = asked.read(path, &text, func() bool {
		if looks++; looks == 5 {
			output.write("stderr", []byte("late"), false)
		}
		return looks > 6
	})
	if got := text.String(); got != "one\ntwothree\nlate\n" {
		t.Errorf("followed: %q", got)
	}
}

// Aim: a container runs as whom its own context says, then its pod's, then its image's; root is refused where it must not be.
func TestUser(t *testing.T) {
	number := func(value int64) *int64 { return &value }
	yes := true
	pod := &core.Pod{Spec: core.PodSpec{SecurityContext: &core.PodSecurityContext{RunAsUser: number(7), FSGroup: number(9), RunAsNonRoot: &yes}}}
	user7, err := user(pod, &core.Container{}, &Image{User: 5})
	if err != nil || user7.UID != 7 || !reflect.DeepEqual(user7.Groups, []int{9}) {
		t.Errorf("%+v %v", user7, err)
	}
	user8, _ := user(pod, &core.Container{SecurityContext: &core.SecurityContext{RunAsUser: number(8)}}, &Image{})
	user5, _ := user(&core.Pod{}, &core.Container{}, &Image{User: 5})
	if user8.UID != 8 || user5.UID != 5 {
		t.Errorf("%d %d", user8.UID, user5.UID)
	}
	if _, err := user(pod, &core.Container{SecurityContext: &core.SecurityContext{RunAsUser: number(0)}}, &Image{}); err == nil {
		t.Error("root is taken")
	}
}
