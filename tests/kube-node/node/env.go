package node

import (
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"

	core "k8s.io/api/core/v1"
	failure "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// facts of a pod that its containers may ask for.
type facts struct {
	pod      *core.Pod
	podIPs   []string
	hostIPs  []string
	capacity core.ResourceList
}

// field is the value of a fieldRef's path.
func (facts *facts) field(path string) (string, error) {
	pod := facts.pod
	if at := strings.Index(path, "['"); at > 0 && strings.HasSuffix(path, "']") {
		key := path[at+2 : len(path)-2]
		switch path[:at] {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return pairs(pod.Labels), nil
	case "metadata.annotations":
		return pairs(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return facts.podIPs[0], nil
	case "status.podIPs":
		return strings.Join(facts.podIPs, ","), nil
	case "status.hostIP":
		return facts.hostIPs[0], nil
	case "status.hostIPs":
		return strings.Join(facts.hostIPs, ","), nil
	}
	return "", fmt.Errorf("unknown fieldPath %q", path)
}

func pairs(values map[string]string) string {
	var lines []string
	for key, value := range values {
		lines = append(lines, fmt.Sprintf("%s=%q", key, value))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// resources is the value of a resourceFieldRef; a limit that is not set is what the node has.
func (facts *facts) resources(ref *core.ResourceFieldSelector, container *core.Container) (string, error) {
	if ref.ContainerName != "" {
		for _, other := range slices.Concat(facts.pod.Spec.InitContainers, facts.pod.Spec.Containers) {
			if other.Name == ref.ContainerName {
				container = &other
			}
		}
	}
	if container == nil {
		return "", fmt.Errorf("resourceFieldRef %s names no container", ref.Resource)
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	list := container.Resources.Requests
	if kind == "limits" {
		list = container.Resources.Limits
	}
	quantity, set := list[core.ResourceName(name)]
	if !set && kind == "limits" {
		quantity = facts.capacity[core.ResourceName(name)]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	return strconv.FormatInt(int64(math.Ceil(quantity.AsApproximateFloat64()/divisor.AsApproximateFloat64())), 10), nil
}

// environment of a container: the image's, envFrom, env with $(NAME) expanded, then the Services of its namespace.
func (node *Node) environment(ctx context.Context, facts *facts, container *core.Container, image *Image) ([]string, error) {
	own := map[string]string{}
	for _, from := range container.EnvFrom {
		values, err := node.all(ctx, facts.pod.Namespace, &from)
		if err != nil {
			return nil, err
		}
		for key, value := range values {
			own[from.Prefix+key] = value
		}
	}
	services := node.serviceEnv(facts.pod)
	for _, env := range container.Env {
		value := expand(env.Value, own, services)
		if env.ValueFrom != nil {
			var err error
			var set bool
			if value, set, err = node.valueFrom(ctx, facts, container, env.ValueFrom); err != nil {
				return nil, err
			}
			if !set {
				continue
			}
		}
		own[env.Name] = value
	}
	whole := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": hostname(facts.pod), "HOME": "/"}
	for _, layer := range []map[string]string{image.Env, services, own} {
		for name, value := range layer {
			whole[name] = value
		}
	}
	var env []string
	for name, value := range whole {
		env = append(env, name+"="+value)
	}
	sort.Strings(env)
	return env, nil
}

func (node *Node) valueFrom(ctx context.Context, facts *facts, container *core.Container, from *core.EnvVarSource) (string, bool, error) {
	namespace := facts.pod.Namespace
	switch {
	case from.FieldRef != nil:
		value, err := facts.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err := facts.resources(from.ResourceFieldRef, container)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		values, err := node.configMap(ctx, namespace, ref.Name, ref.Optional)
		return one(values, "ConfigMap", ref.Name, ref.Key, ref.Optional, err)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		values, err := node.secret(ctx, namespace, ref.Name, ref.Optional)
		return one(values, "Secret", ref.Name, ref.Key, ref.Optional, err)
	}
	return "", false, fmt.Errorf("this valueFrom is not emulated")
}

func one(values map[string][]byte, kind, name, key string, optional *bool, err error) (string, bool, error) {
	value, found := values[key]
	if err == nil && !found && (optional == nil || !*optional) {
		err = fmt.Errorf("couldn't find key %s in %s %s", key, kind, name)
	}
	return string(value), found, err
}

func (node *Node) all(ctx context.Context, namespace string, from *core.EnvFromSource) (map[string]string, error) {
	var values map[string][]byte
	var err error
	switch {
	case from.ConfigMapRef != nil:
		values, err = node.configMap(ctx, namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
	case from.SecretRef != nil:
		values, err = node.secret(ctx, namespace, from.SecretRef.Name, from.SecretRef.Optional)
	}
	texts := map[string]string{}
	for key, value := range values {
		texts[key] = string(value)
	}
	return texts, err
}

// configMap and secret read one object from the API server; one that is optional and missing has no keys.
func (node *Node) configMap(ctx context.Context, namespace, name string, optional *bool) (map[string][]byte, error) {
	object, err := node.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, meta.GetOptions{})
	values := map[string][]byte{}
	if err != nil {
		return values, forgive(err, optional)
	}
	for key, value := range object.Data {
		values[key] = []byte(value)
	}
	for key, value := range object.BinaryData {
		values[key] = value
	}
	return values, nil
}

func (node *Node) secret(ctx context.Context, namespace, name string, optional *bool) (map[string][]byte, error) {
	object, err := node.client.CoreV1().Secrets(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil {
		return nil, forgive(err, optional)
	}
	return object.Data, nil
}

func forgive(err error, optional *bool) error {
	if failure.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

// serviceEnv are the variables of the namespace's Services, as Docker's links once were, and of the API server.
func (node *Node) serviceEnv(pod *core.Pod) map[string]string {
	env := map[string]string{}
	for _, service := range node.world.services() {
		apiServer := service.Namespace == "default" && service.Name == "kubernetes"
		links := service.Namespace == pod.Namespace && (pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks)
		if !apiServer && !links || service.Spec.ClusterIP == "" || service.Spec.ClusterIP == core.ClusterIPNone || len(service.Spec.Ports) == 0 {
			continue
		}
		prefix := strings.ToUpper(strings.ReplaceAll(service.Name, "-", "_"))
		env[prefix+"_SERVICE_HOST"] = service.Spec.ClusterIP
		env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(service.Spec.Ports[0].Port))
		for at, port := range service.Spec.Ports {
			number, protocol := strconv.Itoa(int(port.Port)), strings.ToLower(string(port.Protocol))
			if port.Name != "" {
				env[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = number
			}
			url := protocol + "://" + net.JoinHostPort(service.Spec.ClusterIP, number)
			if at == 0 {
				env[prefix+"_PORT"] = url
			}
			whole := prefix + "_PORT_" + number + "_" + strings.ToUpper(protocol)
			env[whole], env[whole+"_PROTO"], env[whole+"_PORT"], env[whole+"_ADDR"] = url, protocol, number, service.Spec.ClusterIP
		}
	}
	return env
}

// expand replaces $(NAME) by the first layer that has it and leaves it where none does; $$ is one $.
func expand(text string, layers ...map[string]string) string {
	var out strings.Builder
	for {
		at := strings.IndexByte(text, '$')
		if at < 0 || at == len(text)-1 {
			return out.String() + text
		}
		out.WriteString(text[:at])
		text = text[at:]
		close := strings.IndexByte(text, ')')
		switch {
		case text[1] == '$':
			out.WriteByte('$')
			text = text[2:]
			continue
		case text[1] != '(' || close < 0:
			out.WriteByte('$')
			text = text[1:]
			continue
		}
		value := text[:close+1]
		for _, layer := range layers {
			if found, is := layer[text[2:close]]; is {
				value = found
				break
			}
		}
		out.WriteString(value)
		text = text[close+1:]
	}
}
