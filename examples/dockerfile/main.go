// Answers with a greeting from the environment and a file of the image.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		page, err := os.ReadFile("page.txt")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%s\n%s", os.Getenv("GREETING"), page)
	})
	log.Fatal(http.ListenAndServe(":9000", nil))
}
