package node

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dev.meshwright/tests/kube-node/box"
)

// volumes of one pod, below a folder of the node's.
type volumes struct {
	node   *Node
	folder string
	// tokens by volume and path, with when to ask for the next.
	tokens map[string]token
}

type token struct {
	text  []byte
	renew time.Time
}

// file of a volume whose content comes from the API.
type file struct {
	content []byte
	mode    fs.FileMode
	secret  bool
}

// refresh makes all volumes, or brings those that come from the API up to date.
func (volumes *volumes) refresh(ctx context.Context, facts *facts) error {
	for _, volume := range facts.pod.Spec.Volumes {
		path := filepath.Join(volumes.folder, volume.Name)
		if volume.EmptyDir != nil {
			if err := emptyDir(path, facts.pod); err != nil {
				return err
			}
			continue
		}
		files, err := volumes.files(ctx, facts, &volume)
		if err != nil {
			return fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", volume.Name, err)
		}
		own(files, facts.pod)
		if err := write(path, files, facts.pod); err != nil {
			return fmt.Errorf("cannot write the volume %s: %w", volume.Name, err)
		}
	}
	return nil
}

func (volumes *volumes) files(ctx context.Context, facts *facts, volume *core.Volume) (map[string]*file, error) {
	mode := func(asked *int32) fs.FileMode {
		if asked == nil {
			return 0o644
		}
		return fs.FileMode(*asked)
	}
	namespace := facts.pod.Namespace
	files := map[string]*file{}
	switch {
	case volume.ConfigMap != nil:
		values, err := volumes.node.configMap(ctx, namespace, volume.ConfigMap.Name, volume.ConfigMap.Optional)
		return files, place(files, values, volume.ConfigMap.Items, mode(volume.ConfigMap.DefaultMode), volume.ConfigMap.Optional, err)
	case volume.Secret != nil:
		values, err := volumes.node.secret(ctx, namespace, volume.Secret.SecretName, volume.Secret.Optional)
		return files, place(files, values, volume.Secret.Items, mode(volume.Secret.DefaultMode), volume.Secret.Optional, err)
	case volume.DownwardAPI != nil:
		return files, downward(files, facts, volume.DownwardAPI.Items, mode(volume.DownwardAPI.DefaultMode))
	case volume.Projected != nil:
		base := mode(volume.Projected.DefaultMode)
		for _, source := range volume.Projected.Sources {
			var err error
			switch {
			case source.ConfigMap != nil:
				var values map[string][]byte
				values, err = volumes.node.configMap(ctx, namespace, source.ConfigMap.Name, source.ConfigMap.Optional)
				err = place(files, values, source.ConfigMap.Items, base, source.ConfigMap.Optional, err)
			case source.Secret != nil:
				var values map[string][]byte
				values, err = volumes.node.secret(ctx, namespace, source.Secret.Name, source.Secret.Optional)
				err = place(files, values, source.Secret.Items, base, source.Secret.Optional, err)
			case source.DownwardAPI != nil:
				err = downward(files, facts, source.DownwardAPI.Items, base)
			case source.ServiceAccountToken != nil:
				var text []byte
				text, err = volumes.token(ctx, facts.pod, volume.Name, source.ServiceAccountToken)
				files[source.ServiceAccountToken.Path] = &file{text, base, true}
			default:
				err = fmt.Errorf("this projected source is not emulated")
			}
			if err != nil {
				return nil, err
			}
		}
		return files, nil
	}
	return nil, fmt.Errorf("this kind of volume is not emulated (emptyDir, configMap, secret, projected, downwardAPI are)")
}

// place puts an object's keys at their paths: all of them by name, or the items that are asked for.
func place(files map[string]*file, values map[string][]byte, items []core.KeyToPath, mode fs.FileMode, optional *bool, err error) error {
	if err != nil {
		return err
	}
	if len(items) == 0 {
		for key, value := range values {
			files[key] = &file{content: value, mode: mode}
		}
	}
	for _, item := range items {
		value, found := values[item.Key]
		if !found {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("references non-existent key: %s", item.Key)
		}
		files[item.Path] = &file{content: value, mode: mode}
		if item.Mode != nil {
			files[item.Path].mode = fs.FileMode(*item.Mode)
		}
	}
	return nil
}

func downward(files map[string]*file, facts *facts, items []core.DownwardAPIVolumeFile, mode fs.FileMode) error {
	for _, item := range items {
		text, err := "", error(nil)
		if item.FieldRef != nil {
			text, err = facts.field(item.FieldRef.FieldPath)
		} else if item.ResourceFieldRef != nil {
			text, err = facts.resources(item.ResourceFieldRef, nil)
		}
		if err != nil {
			return err
		}
		files[item.Path] = &file{content: []byte(text), mode: mode}
		if item.Mode != nil {
			files[item.Path].mode = fs.FileMode(*item.Mode)
		}
	}
	return nil
}

// token of the pod's account for an audience, bound to the pod; asked for again after 80% of its life, as by the kubelet.
func (volumes *volumes) token(ctx context.Context, pod *core.Pod, volume string, asked *core.ServiceAccountTokenProjection) ([]byte, error) {
	key := volume + "/" + asked.Path
	now := time.Now()
	if held, is := volumes.tokens[key]; is && now.Before(held.renew) {
		return held.text, nil
	}
	request := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{
		ExpirationSeconds: asked.ExpirationSeconds,
		BoundObjectRef:    &authentication.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if asked.Audience != "" {
		request.Spec.Audiences = []string{asked.Audience}
	}
	account := pod.Spec.ServiceAccountName
	answer, err := volumes.node.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, request, meta.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("failed to fetch token for ServiceAccount %s: %w", account, err)
	}
	life := answer.Status.ExpirationTimestamp.Sub(now)
	held := token{[]byte(answer.Status.Token), now.Add(min(life*8/10, 24*time.Hour))}
	volumes.tokens[key] = held
	return held.text, nil
}

func emptyDir(path string, pod *core.Pod) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o777); err != nil {
		return fmt.Errorf("cannot make an emptyDir: %w", err)
	}
	mode := fs.FileMode(0o777)
	if group := fsGroup(pod); group >= 0 {
		if err := os.Chown(path, 0, group); err != nil {
			return err
		}
		mode |= fs.ModeSetgid
	}
	return os.Chmod(path, mode)
}

// own gives tokens the mode they have on a real node: the user's alone if all containers run as one user, the group's if there is one.
func own(files map[string]*file, pod *core.Pod) {
	user, group := fsUser(pod), fsGroup(pod)
	for _, file := range files {
		if file.secret && (user >= 0 || group >= 0) {
			file.mode = 0o600
		}
		if group >= 0 {
			file.mode |= 0o440
		}
	}
}

// write replaces a volume's files all at once, by the swap of one link, `..data`, so that a reader never sees half of an update.
func write(path string, files map[string]*file, pod *core.Pod) error {
	if same(path, files) {
		return nil
	}
	fresh := fmt.Sprintf("..%d", time.Now().UnixNano())
	for name, file := range files {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("the path %q leaves the volume", name)
		}
		target := filepath.Join(path, fresh, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, file.content, 0o600); err != nil {
			return err
		}
		user, group := 0, max(fsGroup(pod), 0)
		if file.secret {
			user = max(fsUser(pod), 0)
		}
		if err := os.Chown(target, user, group); err != nil {
			return err
		}
		if err := os.Chmod(target, file.mode); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(path, fresh), 0o755); err != nil {
		return err
	}
	last, _ := os.Readlink(filepath.Join(path, "..data"))
	if err := os.Symlink(fresh, filepath.Join(path, "..next")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(path, "..next"), filepath.Join(path, "..data")); err != nil {
		return err
	}
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		_ = os.Symlink(filepath.Join("..data", first), filepath.Join(path, first))
	}
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		name := entry.Name()
		if _, err := os.Stat(filepath.Join(path, name)); err != nil || last != "" && name == last {
			_ = os.RemoveAll(filepath.Join(path, name))
		}
	}
	return nil
}

// same says whether the volume has just these files already.
func same(path string, files map[string]*file) bool {
	count := 0
	err := filepath.WalkDir(filepath.Join(path, "..data")+"/", func(at string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			count++
		}
		return err
	})
	if err != nil || count != len(files) {
		return false
	}
	for name, file := range files {
		content, err := os.ReadFile(filepath.Join(path, "..data", name))
		if err != nil || string(content) != string(file.content) {
			return false
		}
	}
	return true
}

// mounts of a container.
func (volumes *volumes) mounts(container *core.Container, env map[string]string) ([]box.Mount, error) {
	var mounts []box.Mount
	for _, mount := range container.VolumeMounts {
		sub := mount.SubPath
		if mount.SubPathExpr != "" {
			sub = expand(mount.SubPathExpr, env)
		}
		if sub != "" && !filepath.IsLocal(sub) {
			return nil, fmt.Errorf("subPath %q leaves the volume %s", sub, mount.Name)
		}
		source := filepath.Join(volumes.folder, mount.Name, sub)
		if _, err := os.Stat(source); sub != "" && err != nil {
			if err := os.MkdirAll(source, 0o777); err != nil {
				return nil, fmt.Errorf("cannot make subPath %s: %w", sub, err)
			}
		}
		mounts = append(mounts, box.Mount{Source: source, Target: mount.MountPath, ReadOnly: mount.ReadOnly})
	}
	return mounts, nil
}

func fsGroup(pod *core.Pod) int {
	if context := pod.Spec.SecurityContext; context != nil && context.FSGroup != nil {
		return int(*context.FSGroup)
	}
	return -1
}

// fsUser is the user that all containers run as, -1 if they differ or it is the images' matter.
func fsUser(pod *core.Pod) int {
	user := -1
	for at, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		its := -1
		if context := pod.Spec.SecurityContext; context != nil && context.RunAsUser != nil {
			its = int(*context.RunAsUser)
		}
		if context := container.SecurityContext; context != nil && context.RunAsUser != nil {
			its = int(*context.RunAsUser)
		}
		if at > 0 && its != user {
			return -1
		}
		user = its
	}
	return user
}
