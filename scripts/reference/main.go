// Plain implementations of the designs that Towpath replaces, for scripts/bench-reference: one process each, one
// command at a time, no recovery. CONFIRM=1 has the gateway wait for the broker's confirm before it answers.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	log.SetOutput(io.Discard)
	switch os.Args[1] {
	case "gateway":
		gateway()
	case "worker":
		worker()
	case "reader":
		reader()
	case "writer":
		writer()
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

// Redis, one command and one answer at a time on each connection.
type link struct {
	conn net.Conn
	in   *bufio.Reader
}

func dial() *link {
	conn := must(net.Dial("tcp", os.Getenv("REDIS_ADDR")))
	return &link{conn, bufio.NewReader(conn)}
}

func (l *link) do(words ...string) any {
	var text strings.Builder
	fmt.Fprintf(&text, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(&text, "$%d\r\n%s\r\n", len(word), word)
	}
	must(io.WriteString(l.conn, text.String()))
	return l.answer()
}

func (l *link) answer() any {
	line := strings.TrimRight(must(l.in.ReadString('\n')), "\r\n")
	switch line[0] {
	case '$', '*':
		count := must(strconv.Atoi(line[1:]))
		if count < 0 {
			return nil
		}
		if line[0] == '*' {
			all := make([]any, count)
			for i := range all {
				all[i] = l.answer()
			}
			return all
		}
		bytes := make([]byte, count+2)
		must(io.ReadFull(l.in, bytes))
		return string(bytes[:count])
	case '-':
		return fmt.Errorf("%s", line[1:])
	}
	return line[1:]
}

type order struct {
	ID  string `json:"id"`
	SKU string `json:"sku"`
	Qty int    `json:"qty"`
}

func gateway() {
	connection := must(amqp.Dial(os.Getenv("RABBITMQ_URLS")))
	channel := must(connection.Channel())
	must(0, channel.ExchangeDeclare("orders.direct", "direct", true, false, false, false, nil))
	must(channel.QueueDeclare("orders.queue", true, false, false, false, nil))
	must(0, channel.QueueBind("orders.queue", "", "orders.direct", false, nil))
	confirms := os.Getenv("CONFIRM") == "1"
	if confirms {
		must(0, channel.Confirm(false))
	}
	links := sync.Pool{New: func() any { return dial() }}
	http.HandleFunc("/orders", func(w http.ResponseWriter, r *http.Request) {
		var one order
		if json.NewDecoder(r.Body).Decode(&one) != nil {
			http.Error(w, "Invalid JSON", 400)
			return
		}
		if one.ID == "" || one.SKU == "" || one.Qty <= 0 {
			http.Error(w, "Missing or invalid fields", 400)
			return
		}
		keys := links.Get().(*link)
		fresh := keys.do("SET", "idemp:"+one.ID, "1", "NX", "EX", "300")
		links.Put(keys)
		if fresh == nil {
			http.Error(w, "Duplicate order", 409)
			return
		}
		body, _ := json.Marshal(one)
		message := amqp.Publishing{ContentType: "application/json", DeliveryMode: 2, Body: body}
		confirm, err := channel.PublishWithDeferredConfirmWithContext(context.Background(), "orders.direct", "", false, false, message)
		if err != nil || confirms && !confirm.Wait() {
			http.Error(w, "Failed to publish order", 500)
			return
		}
		log.Printf("Order %s accepted and published", one.ID)
		w.WriteHeader(202)
		fmt.Fprintf(w, "Order received: %s", one.ID)
	})
	must(0, http.ListenAndServe(os.Getenv("HTTP_ADDR"), nil))
}

func worker() {
	keys := dial()
	for {
		popped, _ := keys.do("BRPOP", os.Getenv("QUEUE_NAME"), "5").([]any)
		if popped == nil {
			continue
		}
		file := must(os.OpenFile(os.Getenv("OUTPUT_PATH"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))
		fmt.Fprintf(file, "%s | %s\n", time.Now().Format(time.RFC3339Nano), popped[1])
		file.Close()
		log.Printf("processed message: %q", popped[1])
	}
}

func reader() {
	keys := dial()
	lines := bufio.NewReader(must(os.Open(os.Getenv("INPUT_PATH"))))
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		keys.do("XADD", "line_stream", "*", "line", strings.TrimSuffix(line, "\n"))
		log.Print("Produced: ", line)
	}
}

func writer() {
	keys := dial()
	keys.do("XGROUP", "CREATE", "line_stream", "cg1", "0", "MKSTREAM")
	file := must(os.Create(os.Getenv("OUTPUT_PATH")))
	out := bufio.NewWriter(file)
	for {
		read, _ := keys.do("XREADGROUP", "GROUP", "cg1", "one", "COUNT", "1", "BLOCK", "5000", "STREAMS", "line_stream", ">").([]any)
		for _, stream := range read {
			for _, entry := range stream.([]any)[1].([]any) {
				fields := entry.([]any)
				fmt.Fprintln(out, fields[1].([]any)[1])
				out.Flush()
				keys.do("XACK", "line_stream", "cg1", fields[0].(string))
			}
		}
	}
}
