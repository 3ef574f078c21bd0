// Load on etcd by its own Go client, so that the client is not what is measured. One JSON object a line on stdout.
//
//	etcd_load load ENDPOINT RECORDS OUTSTANDING SECS    puts of 100 bytes; RECORDS > 1: transactions of so many
//	etcd_load first ENDPOINTS                           after a line on stdin: seconds to the first put that succeeds
//	etcd_load transfer ENDPOINT TARGET_ID TARGET        seconds from asking until the new leader has committed a put
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
)

const keys = 10000

var value = strings.Repeat("v", 92)

func key(number int64) string { return fmt.Sprintf("%08d", number%keys) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(endpoints ...string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	check(err)
	return client
}

func load(endpoint string, records, outstanding int64, secs float64) {
	client := open(endpoint)
	var number int64
	var lock sync.Mutex
	var wait sync.WaitGroup
	latencies := []float64{}
	began := time.Now()
	end := began.Add(time.Duration(secs * float64(time.Second)))
	for i := int64(0); i < outstanding; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			own := []float64{}
			for {
				start := time.Now()
				if start.After(end) {
					break
				}
				var err error
				if records == 1 {
					_, err = client.Put(context.Background(), key(atomic.AddInt64(&number, 1)), value)
				} else {
					ops := make([]clientv3.Op, records)
					first := atomic.AddInt64(&number, records)
					for each := range ops {
						ops[each] = clientv3.OpPut(key(first+int64(each)), value)
					}
					_, err = client.Txn(context.Background()).Then(ops...).Commit()
				}
				check(err)
				own = append(own, time.Since(start).Seconds()*1000)
			}
			lock.Lock()
			latencies = append(latencies, own...)
			lock.Unlock()
		}()
	}
	wait.Wait()
	took := time.Since(began).Seconds()
	sort.Float64s(latencies)
	count := len(latencies)
	tell(map[string]float64{"per_s": float64(count) / took, "p50_ms": latencies[count/2], "p99_ms": latencies[count*99/100]})
}

func first(endpoints []string) {
	clients := []*clientv3.Client{}
	for _, endpoint := range endpoints {
		clients = append(clients, open(endpoint))
	}
	fmt.Println("{}") // ready
	bufio.NewReader(os.Stdin).ReadString('\n')
	began := time.Now()
	done := make(chan float64, len(clients))
	for _, client := range clients {
		go func(client *clientv3.Client) {
			for {
				limited, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				_, err := client.Put(limited, key(0), value)
				cancel()
				if err == nil {
					done <- time.Since(began).Seconds()
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}(client)
	}
	tell(map[string]float64{"secs": <-done})
}

func transfer(endpoint string, id uint64, target string) {
	client, next := open(endpoint), open(target)
	_, err := next.Get(context.Background(), key(0)) // connected
	check(err)
	began := time.Now()
	_, err = client.MoveLeader(context.Background(), id)
	check(err)
	_, err = next.Put(context.Background(), key(0), value)
	check(err)
	tell(map[string]float64{"secs": time.Since(began).Seconds()})
}

func tell(what map[string]float64) { check(json.NewEncoder(os.Stdout).Encode(what)) }

func number(text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	check(err)
	return value
}

func main() {
	arguments := os.Args[2:]
	switch os.Args[1] {
	case "load":
		secs, err := strconv.ParseFloat(arguments[3], 64)
		check(err)
		load(arguments[0], number(arguments[1]), number(arguments[2]), secs)
	case "first":
		first(arguments)
	case "transfer":
		id, err := strconv.ParseUint(arguments[1], 10, 64)
		check(err)
		transfer(arguments[0], id, arguments[2])
	}
}
