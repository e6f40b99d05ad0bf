"""A table of invented interactions, as text."""

HEAD = "user,item,rating,timestamp,title\n"
ROWS = "u2,a,4,100,Ant\nu1,b,3.5,50,Bee\nu2,b,1,70,Bee\n"
NUMBERS = {"user": "1", "item": "2", "rating": "3", "timestamp": "4", "title": "5"}
