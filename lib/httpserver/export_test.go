package httpserver

import "time"

// SetAnswerTimeout replaces AnswerTimeout, before the server runs.
func (s *Server) SetAnswerTimeout(d time.Duration) { s.listener.(*connections).answerTimeout = d }
