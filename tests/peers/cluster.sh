#!/bin/bash
# A real one-node Kubernetes (API server, controllers, scheduler, kubelet, containerd, kube-proxy, CoreDNS)
# on a plain Debian machine, from Go modules and Debian packages, inside one network namespace of its own.
#
#   cluster.sh build           get and build the programs once (about 20 min on 2 cores the first time)
#   cluster.sh up              start; ready when it returns (about 10 s)
#   cluster.sh load FILE.tar   import an image archive (podman save); there is no registry to pull from,
#                              so pods use its name with imagePullPolicy: Never
#   cluster.sh kubectl ARGS    kubectl with admin rights;   `cluster.sh config` prints its kubeconfig's path;
#                              audit.log beside that is the API server's audit log (who did what)
#   cluster.sh in CMD...       run CMD inside the cluster's network namespace (API server: 127.0.0.1:6443,
#                              node: 10.245.0.1, pods: 10.244.0.0/24, services: 10.96.0.0/16, DNS: 10.245.0.1)
#   cluster.sh down            stop everything and remove every trace but the built programs
#
# Needs root and Debian's: etcd-server runc containernetworking-plugins catatonit podman nftables iproute2 curl,
# and Go. KUBE_APISERVER_ARGS: more flags for the API server. HEDDLE_K8S holds programs and state; it must keep its place.
set -eu
self=$(readlink -f "$0")
kube=1.36.3 containerd=2.2.0 coredns=1.15.0
home=${HEDDLE_K8S:-${HEDDLE_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/heddle-peers}/kubernetes-$kube} bin=$home/bin run=$home/run ns=heddle-k8s node=10.245.0.1
export PATH=$bin:$PATH
in_ns() { nsenter --net=/var/run/netns/$ns "$@"; }
ctl() { in_ns kubectl --kubeconfig "$run/admin.conf" "$@"; }
wait_for() { for _ in $(seq 1 "$1"); do "${@:2}" >/dev/null 2>&1 && return; sleep 0.5; done; echo "cluster: timed out: ${*:2}; logs in $run" >&2; return 1; }
start() { nsenter --net=/var/run/netns/$ns setsid "$@" >"$run/$(basename "$1").log" 2>&1 </dev/null & echo $! >"$run/$(basename "$1").pid"; }

build() {
  mkdir -p "$bin" "$home/mod"; export GOFLAGS=
  module() { mkdir -p "$home/mod/$1"; cd "$home/mod/$1"; }
  if [ ! -x "$bin/kubectl" ]; then
    module kube
    src=$(go mod download -json "k8s.io/kubernetes@v$kube" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    # a scratch module whose requirements are Kubernetes' own; its staging modules are published as v0.x
    sed -E "s#^module .*#module scratch#; s|=> \./staging/src/(k8s.io/[a-z-]+)|=> \1 v0.${kube#1.}|" "$src/go.mod" >go.mod
    install -m644 "$src/go.sum" go.sum
    for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
      go get -tool "k8s.io/kubernetes/cmd/$c@v$kube" && go build -o "$bin/$c" "k8s.io/kubernetes/cmd/$c"
    done
  fi
  if [ ! -x "$bin/ctr" ]; then
    module containerd; [ -e go.mod ] || go mod init scratch
    for c in containerd containerd-shim-runc-v2 ctr; do
      go get -tool "github.com/containerd/containerd/v2/cmd/$c@v$containerd" && go build -o "$bin/$c" "github.com/containerd/containerd/v2/cmd/$c"
    done
  fi
  if [ ! -x "$bin/coredns" ]; then
    module coredns; [ -e go.mod ] || go mod init scratch
    go get -tool "github.com/coredns/coredns@v$coredns" && go build -o "$bin/coredns" github.com/coredns/coredns
  fi
}

up() {
  [ -e /var/run/netns/$ns ] && { echo "cluster: already up, or not cleaned: cluster.sh down" >&2; exit 1; }
  mkdir -p "$run/cni"; cd "$run"
  ip netns add $ns; ip -n $ns link set lo up
  ip -n $ns link add node0 type bridge; ip -n $ns addr add $node/24 dev node0; ip -n $ns link set node0 up
  ip -n $ns route add default dev node0 # so that addresses outside have a way to be refused, not an error
  in_ns sysctl -qw net.ipv4.ip_forward=1
  openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
  openssl ecparam -genkey -name prime256v1 -noout -out ca.key; openssl req -x509 -new -key ca.key -days 30 -subj /CN=cluster-ca -out ca.crt
  openssl ecparam -genkey -name prime256v1 -noout -out api.key
  openssl req -new -key api.key -subj /CN=kube-apiserver | openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out api.crt -extfile <(
    printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1,IP:%s,IP:10.96.0.1,DNS:localhost' $node
    printf ',DNS:%s' kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local) 2>/dev/null
  token=$(openssl rand -hex 16); echo "$token,admin,1,\"system:masters\"" >tokens.csv
  cat >admin.conf <<Y
{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority: "$run/ca.crt"}}], users: [{name: u, user: {token: "$token"}}]}
Y
  chmod 600 admin.conf tokens.csv
  printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n' >audit.yaml
  start etcd --data-dir "$run/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=0.0.0.0 --advertise-address=$node --tls-cert-file=api.crt --tls-private-key-file=api.key \
    --audit-policy-file=audit.yaml --audit-log-path="$run/audit.log" ${KUBE_APISERVER_ARGS:-} \
    --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=RBAC --token-auth-file=tokens.csv --allow-privileged=true \
    --kubelet-preferred-address-types=InternalIP --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key
  wait_for 120 ctl get --raw /readyz
  start kube-controller-manager --kubeconfig admin.conf --service-account-private-key-file=sa.key --root-ca-file="$run/ca.crt"
  start kube-scheduler --kubeconfig admin.conf
  cat >containerd.toml <<Y
version = 3
root = "$run/containerd/root"
state = "$run/containerd/state"
[grpc]
address = "$run/containerd.sock"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$run/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/pause:1"
Y
  cat >cni/10-bridge.conflist <<Y
{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"pods0","isGateway":true,"hairpinMode":true,
 "ipam":{"type":"host-local","dataDir":"$run/ipam","ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
Y
  start containerd -c containerd.toml
  mkdir -p pause; install -m755 "$(command -v catatonit)" pause/pause
  printf 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause","-P"]\n' >pause/Containerfile
  podman build -q -t localhost/pause:1 pause >/dev/null; podman save -q -o pause.tar localhost/pause:1
  wait_for 40 ctr -a "$run/containerd.sock" version
  load pause.tar
  cat >kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$run/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
resolvConf: ""
clusterDNS: ["$node"]
clusterDomain: cluster.local
Y
  start kubelet --config kubelet.yaml --kubeconfig admin.conf --root-dir "$run/kubelet" --hostname-override node1 --node-ip $node
  start kube-proxy --kubeconfig admin.conf --proxy-mode=nftables --cluster-cidr=10.244.0.0/16 --hostname-override node1 --conntrack-max-per-core=0
  cat >Corefile <<Y
.:53 {
  bind $node
  kubernetes cluster.local {
    kubeconfig $run/admin.conf
  }
}
Y
  start coredns -conf Corefile
  wait_for 120 bash -c "'$self' kubectl get node node1 | grep -qw Ready"
  wait_for 60 ctl get serviceaccount default
  wait_for 60 in_ns curl -sf --cacert ca.crt https://10.96.0.1/version
}

load() { ctr -a "$run/containerd.sock" -n k8s.io images import --local --snapshotter native "$1" 2>&1 | grep -v DEPRECATION; }

stop() { # by their ids; asked first, then forced
  local pids='' p
  for p in "$@"; do [ -e "$run/$p.pid" ] && pids="$pids $(cat "$run/$p.pid")"; done
  [ -n "$pids" ] || return 0
  kill $pids 2>/dev/null
  for _ in $(seq 1 20); do kill -0 $pids 2>/dev/null || break; sleep 0.2; done
  kill -9 $pids 2>/dev/null
}

down() {
  set +e
  stop kubelet kube-controller-manager kube-scheduler kube-proxy coredns
  for t in $(ctr -a "$run/containerd.sock" -n k8s.io tasks ls -q 2>/dev/null); do ctr -a "$run/containerd.sock" -n k8s.io tasks kill -s KILL "$t" >/dev/null 2>&1; done
  stop kube-apiserver containerd etcd
  for f in /proc/[0-9]*/cmdline; do # the containers' shims outlive containerd: those that name this cluster's socket
    tr '\0' ' ' <"$f" 2>/dev/null | grep -q -- "-address $run/containerd.sock" && kill -9 "$(cut -d/ -f3 <<<"$f")"
  done
  awk -v d="$run/" 'index($5,d)==1 {print $5}' /proc/self/mountinfo | sort -r | while read -r m; do umount -l "$m"; done
  if [ -e /var/run/netns/$ns ]; then
    for n in /var/run/netns/cni-*; do # pods' namespaces: those with a leg on this cluster's bridge
      [ -e "$n" ] && nsenter --net="$n" ip -4 addr show 2>/dev/null | grep -q ' 10\.244\.0\.' && ip netns del "$(basename "$n")"
    done
    ip netns del $ns
  fi
  rm -rf "$run"
}

case ${1:-} in
build) build ;; up) up ;; down) down ;;
load) load "$(readlink -f "$2")" ;;
kubectl) shift; ctl "$@" ;;
in) shift; in_ns "$@" ;;
config) echo "$run/admin.conf" ;;
*) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;;
esac
